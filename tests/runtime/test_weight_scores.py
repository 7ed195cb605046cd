import dataclasses

import numpy as np
import pytest
import torch
import transformers as tf

from kvtuner_core.runtime import weight_scores as module
from kvtuner_core.runtime.projections import find_projections
from kvtuner_core.runtime.prompts import cut_prompts
from kvtuner_core.runtime.weight_scores import weight_scores
from tests.fakes.models import FAMILIES, tiny_config, tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec


def _phi3():
    sizes = tiny_config("llama").to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    torch.manual_seed(0)
    config = tf.Phi3Config(
        **{name: sizes[name] for name in (*names, "num_key_value_heads", "pad_token_id", "bos_token_id")},
        eos_token_id=sizes["eos_token_id"],
        max_position_embeddings=512,
    )
    return tf.AutoModelForCausalLM.from_config(config).eval()


def _model(family):
    return _phi3() if family == "phi3" else tiny_model(family)


def _by_hand(model, layer):
    """Weight of the projection of keys and of values with the rows that count, as each family names them."""
    attention = [part for name, part in model.named_modules() if name.endswith((".self_attn", ".attention"))][layer]
    if hasattr(attention, "k_proj"):
        return (attention.k_proj.weight, slice(None)), (attention.v_proj.weight, slice(None))
    rows = torch.arange(len(model.state_dict()[_fused(model, layer)]))
    if hasattr(attention, "query_key_value"):
        rows = rows.view(4, 3, -1)
        weight = attention.query_key_value.weight
        return (weight, rows[:, 1].flatten()), (weight, rows[:, 2].flatten())
    weight, heads, size = attention.qkv_proj.weight, 4, attention.head_dim
    rest = rows[heads * size :]
    return (weight, rest[: len(rest) // 2]), (weight, rest[len(rest) // 2 :])


def _fused(model, layer):
    names = [name for name in model.state_dict() if name.endswith(("query_key_value.weight", "qkv_proj.weight"))]
    return names[layer]


def _prompts(loaded, *, texts=TEXTS[:2]):
    spec = make_spec(None, texts=texts, prefix=40, suffix=9)
    return cut_prompts(spec.prompts.prompts, loaded.tokenizer, prefix_tokens=40, suffix_tokens=9, max_positions=512)


def _loss(model, prompt):
    ids = torch.tensor([[*prompt.prefix, *prompt.suffix]])
    # transformers shifts the labels itself.
    return model(input_ids=ids, labels=ids).loss


@pytest.mark.parametrize("family", [*FAMILIES, "phi3"])
def test_gradient_norms_are_those_that_autograd_gives_the_weights(family):
    model = _model(family)
    loaded = make_loaded(model)
    prompts = _prompts(loaded)
    found = weight_scores(loaded, prompts)
    assert not found.absent
    assert found.tokens == 49
    for layer in range(3):
        sides = _by_hand(model, layer)
        norms = [
            [torch.autograd.grad(_loss(model, prompt), weight)[0][rows].norm().item() for weight, rows in sides]
            for prompt in prompts
        ]
        expected = np.mean(norms, axis=0)
        own = found.layers[layer]
        np.testing.assert_allclose([own.key_gradient, own.value_gradient], expected, rtol=1e-6)
        weights = [weight[rows].norm().item() for weight, rows in sides]
        np.testing.assert_allclose([own.key_weight, own.value_weight], weights, rtol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "phi3"])
def test_norms_without_whole_logits_are_those_with_them(family, monkeypatch):
    loaded = make_loaded(_model(family), torch.float32)
    prompts = _prompts(loaded)
    assert (module._head(loaded) is None) == (family == "gemma2")
    found = weight_scores(loaded, prompts)
    monkeypatch.setattr(module, "_head", lambda _loaded: None)
    for one, other in zip(found.layers, weight_scores(loaded, prompts).layers, strict=True):
        assert one.key_gradient == pytest.approx(other.key_gradient, rel=1e-5)
        assert one.value_gradient == pytest.approx(other.value_gradient, rel=1e-5)


def test_16_bit_models_round_their_own_logits_and_gpus_hold_them():
    for dtype in (torch.bfloat16, torch.float16):
        assert module._head(make_loaded(tiny_model("llama"), dtype)) is None
    loaded = make_loaded(tiny_model("llama"))
    assert module._head(loaded) is not None
    assert module._head(dataclasses.replace(loaded, device=torch.device("cuda"))) is None


def test_texts_are_read_some_at_a_time_and_one_where_memory_is_short(monkeypatch):
    loaded = make_loaded(tiny_model("llama"))
    texts = [[index] * length for index in range(7) for length in (200, 30, 600)]
    head = module._head(loaded)

    def groups(head):
        return [(len(group), len(group[0])) for group in module._equal_texts(loaded, texts, head)]

    assert groups(head) == [(7, 30), (2, 200), (2, 200), (2, 200), (1, 200), *[(1, 600)] * 7]
    assert groups(None) == [(7, 30), (7, 200), (7, 600)]
    monkeypatch.setattr(module, "device_memory", lambda _device: (0, 0))
    assert [count for count, _ in groups(head)] == [1] * 21 == [count for count, _ in groups(None)]


def test_the_norm_is_how_fast_the_loss_moves_along_the_gradient():
    model = tiny_model("llama")
    loaded = make_loaded(model)
    (prompt,) = prompts = _prompts(loaded, texts=TEXTS[:1])
    found = weight_scores(loaded, prompts)
    weight = model.model.layers[1].self_attn.k_proj.weight
    (gradient,) = torch.autograd.grad(_loss(model, prompt), weight)
    step = 1e-3 * gradient / gradient.norm()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step)
            losses.append(_loss(model, prompt).item())
            weight.sub_(sign * step)
    assert found.layers[1].key_gradient == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=0.01)


def test_no_more_than_the_first_tokens_are_read(monkeypatch):
    loaded = make_loaded(tiny_model("llama"))
    whole = weight_scores(loaded, _prompts(loaded))
    monkeypatch.setattr(module, "MOST_TOKENS", 20)
    short = weight_scores(loaded, _prompts(loaded))
    cut = _prompts(loaded, texts=[text[:19] for text in TEXTS[:2]])
    assert (whole.tokens, short.tokens) == (49, 20)
    assert short.layers == weight_scores(loaded, cut).layers != whole.layers


def test_weights_that_make_keys_and_values_at_once_give_no_score():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.v_proj = layer.self_attn.k_proj
    loaded = make_loaded(model)
    found = weight_scores(loaded, _prompts(loaded))
    assert found.layers == ()
    assert "LlamaForCausalLM" in found.absent


def test_nothing_is_left_behind():
    model = tiny_model("gpt_neox")
    assert find_projections(model, 3) is not None
    weight_scores(make_loaded(model), _prompts(make_loaded(model)))
    assert not any(part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
