"""The whole cache in ``generate()``, on tiny models of many families."""

import copy

import pytest
import torch
from transformers import DynamicCache

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme, Rotation
from kvtuner_core.errors import ModelError, PolicyError, SchemeError
from kvtuner_core.runtime.cache import QuantizedKVCache, build_cache
from kvtuner_core.runtime.geometry import layer_geometry
from tests.fakes.models import FAMILIES, tiny_config, tiny_model

PER_TOKEN = QuantScheme.per_token(residual_length=3)
KIVI = QuantScheme.kivi(group_size=8, residual_length=8, sink_length=2)
TURNED = QuantScheme.kivi(group_size=8, residual_length=3, residual_share=0.3, rotation=Rotation.KEYS_AND_VALUES)
PAD = 256


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


def _policy(model, pair="K4V2", scheme=PER_TOKEN):
    return KVPolicy.uniform(pair, layers=model.config.num_hidden_layers, scheme=scheme)


def _mixed(model, scheme):
    """Another pair in each layer, and in each head of the last."""
    names = ("K8V2", "K16V3", "K2V16", "K3V8")
    *layers, last = layer_geometry(model.config)
    pairs = [LayerPrecision(pair=PrecisionPair.parse(names[index % 4])) for index in range(len(layers))]
    heads = tuple(PrecisionPair.parse(names[index % 3]) for index in range(last.kv_heads))
    return KVPolicy(scheme=scheme, layers=(*pairs, LayerPrecision(heads=heads)))


def _prompt(tokens=29, batch=2, seed=0):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def _generate(model, ids, cache, **options):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, **options}
    return model.generate(ids, past_key_values=cache, **options)


def _predicted(cache, *, batch, full_bytes=4):
    return cache_bytes(cache.policy, cache.geometry, tokens=cache.get_seq_length(), batch=batch, full_bytes=full_bytes)


@pytest.mark.parametrize("scheme", [PER_TOKEN, KIVI, TURNED], ids=["per-token", "kivi", "rotated, share"])
@pytest.mark.parametrize("family", FAMILIES)
def test_measured_bytes_are_the_predicted_ones(models, family, scheme):
    model = models[family]
    cache = build_cache(_mixed(model, scheme), model)
    assert cache.measured_bytes() == 0
    _generate(model, _prompt(), cache)
    assert cache.get_seq_length() == 29 + 11
    assert cache.measured_bytes() == _predicted(cache, batch=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_generate_what_the_dynamic_cache_does(models, family):
    model = models[family]
    left_padded = _prompt(tokens=17)
    left_padded[0, :6] = PAD
    cases = [
        (_prompt(), {}),
        (_prompt(), {"num_beams": 3, "num_return_sequences": 2}),
        (_prompt(), {"do_sample": True, "temperature": 1.3, "top_k": 0}),
        (left_padded, {"attention_mask": (left_padded != PAD).long(), "max_new_tokens": 20}),
        (_prompt(batch=1), {"prompt_lookup_num_tokens": 3, "max_new_tokens": 25}),
    ]
    for ids, options in cases:
        cache = build_cache(_policy(model, "KV16", KIVI), model)
        torch.manual_seed(4)
        ours = _generate(model, ids, cache, **options)
        torch.manual_seed(4)
        assert torch.equal(ours, _generate(model, ids, DynamicCache(config=model.config), **options)), options


@pytest.mark.parametrize("scheme", [PER_TOKEN, KIVI], ids=["per-token", "kivi"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_first_tokens_logits_after_a_full_prefill_are_exact(models, family, scheme):
    model, ids = models[family], _prompt()
    with torch.no_grad():
        exact = model(ids, use_cache=False).logits
        cache = build_cache(_policy(model, "KV2", scheme), model)
        assert torch.allclose(model(ids, past_key_values=cache).logits, exact, atol=1e-5)
        through = build_cache(_policy(model, "KV2", scheme), model, prefill=PrefillMode.QUANTISED)
        assert not torch.allclose(model(ids, past_key_values=through).logits, exact, atol=1e-2)
        following = model(ids[:, :1], past_key_values=cache).logits
    assert cache.measured_bytes() == through.measured_bytes() + _predicted(cache, batch=2) - _predicted(
        through, batch=2
    )
    whole = model(torch.cat([ids, ids[:, :1]], dim=1), use_cache=False).logits[:, -1:]
    assert not torch.allclose(following, whole, atol=1e-3)


@pytest.mark.parametrize("scheme", [PER_TOKEN, KIVI], ids=["per-token", "kivi"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_beam_search_scores_what_each_beam_scores_alone(models, family, scheme):
    # A beam that had read another beam's history would have another likelihood.
    model, ids = models[family], _prompt(batch=2, tokens=11)
    cache = build_cache(_policy(model, "K4V4", scheme), model)
    found = _generate(
        model, ids, cache, num_beams=4, num_return_sequences=4, return_dict_in_generate=True, output_scores=True
    )
    assert cache.measured_bytes() == _predicted(cache, batch=8)
    alone = _scores(model, found.sequences, build_cache(_policy(model, "K4V4", scheme), model), prompt=11)
    assert torch.allclose(found.sequences_scores * 12, alone, atol=1e-3)


def _scores(model, sequences, cache, *, prompt):
    """Log-likelihood of what follows the prompt, decoded token by token."""
    total = torch.zeros(len(sequences))
    with torch.no_grad():
        logits = model(sequences[:, :prompt], past_key_values=cache).logits[:, -1]
        for position in range(prompt, sequences.shape[1]):
            token = sequences[:, position : position + 1]
            total += logits.log_softmax(-1).gather(1, token)[:, 0]
            logits = model(token, past_key_values=cache).logits[:, -1]
    return total


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_left_padded_sequence_generates_what_it_does_alone(models, family):
    model = models[family]
    ids = _prompt(tokens=20)
    ids[1, :7] = PAD
    mask = (ids != PAD).long()
    together = _generate(model, ids, build_cache(_policy(model, "K4V4"), model), attention_mask=mask)
    alone = _generate(model, ids[1:, 7:], build_cache(_policy(model, "K4V4"), model))
    assert torch.equal(together[1, 20:], alone[0, 13:])


@pytest.mark.parametrize("scheme", [PER_TOKEN, KIVI], ids=["per-token", "kivi"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_conversation_goes_on_on_one_cache(models, family, scheme):
    model = models[family]
    cache = build_cache(_policy(model, "K4V2", scheme), model)
    first = _generate(model, _prompt(batch=1), cache)
    second = torch.cat([first, _prompt(batch=1, tokens=9, seed=1)], dim=1)
    answer = _generate(model, second, cache)
    assert cache.get_seq_length() == answer.shape[1] - 1
    assert cache.measured_bytes() == _predicted(cache, batch=1)

    replayed = build_cache(_policy(model, "K4V2", scheme), model)
    with torch.no_grad():
        model(first[:, :29], past_key_values=replayed)
        for position in range(29, first.shape[1] - 1):
            model(first[:, position : position + 1], past_key_values=replayed)
        logits = model(second[:, first.shape[1] - 1 :], past_key_values=replayed).logits[:, -1]
        for position in range(second.shape[1], answer.shape[1]):
            token = logits.argmax(-1, keepdim=True)
            assert torch.equal(token, answer[:, position : position + 1])
            logits = model(token, past_key_values=replayed).logits[:, -1]


def test_a_turn_can_be_taken_back(models):
    model = models["llama"]
    cache = build_cache(_policy(model, "K8V4", QuantScheme.per_token()), model)
    first = _generate(model, _prompt(batch=1), cache)
    kept = copy.deepcopy(cache)
    _generate(model, torch.cat([first, _prompt(batch=1, tokens=9, seed=1)], dim=1), cache)
    cache.crop(kept.get_seq_length() - cache.get_seq_length())
    assert cache.measured_bytes() == kept.measured_bytes()
    other = torch.cat([first, _prompt(batch=1, tokens=9, seed=2)], dim=1)
    assert torch.equal(_generate(model, other, cache), _generate(model, other, kept))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_reset_and_use_again(models, family):
    model, ids = models[family], _prompt()
    cache = build_cache(_policy(model, "K4V2", KIVI), model)
    first = _generate(model, ids, cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.measured_bytes()) == (0, 0)
    assert torch.equal(_generate(model, ids, cache), first)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_assisted_decoding_leaves_a_cache_of_the_predicted_size(models, family):
    model = models[family]
    cache = build_cache(_policy(model, "K4V2", KIVI), model)
    ids = _prompt(batch=1, tokens=6).repeat(1, 6)
    _generate(model, ids, cache, prompt_lookup_num_tokens=4, max_new_tokens=25)
    assert cache.measured_bytes() == _predicted(cache, batch=1)


def test_batches_are_repeated_and_selected(models):
    model, ids = models["gemma3"], _prompt(tokens=33)
    cache = build_cache(_policy(model, "K4V2", KIVI), model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([1, 4, 5]))
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    direct = build_cache(_policy(model, "K4V2", KIVI), model)
    with torch.no_grad():
        model(ids[[1, 0, 1]], past_key_values=direct)
        following = [model(ids[[0, 0, 1], :1], past_key_values=one).logits for one in (cache, direct)]
    assert torch.allclose(*following, atol=1e-5)
    assert cache.measured_bytes() == direct.measured_bytes() == _predicted(cache, batch=3)


def test_a_bfloat16_model():
    model = tiny_model("gemma3").to(torch.bfloat16)
    cache = build_cache(_mixed(model, KIVI), model)
    _generate(model, _prompt(), cache)
    assert cache.measured_bytes() == _predicted(cache, batch=2, full_bytes=2)


def test_what_generate_asks_of_a_cache(models):
    model = models["gemma3"]
    cache = QuantizedKVCache(_policy(model), model.config)
    assert len(cache) == 3
    assert cache.is_sliding == [True, False, True]
    assert not cache.is_compileable
    assert cache.is_croppable
    assert cache.get_max_length() == 19
    assert not cache.is_initialized
    assert cache.get_mask_sizes(5, 0) == (5, 0)
    _generate(model, _prompt(), cache)
    assert cache.is_initialized
    assert cache.get_mask_sizes(1, 0) == (19, 40 - 18)
    assert cache.get_mask_sizes(1, 1) == (41, 0)


class TestFit:
    def test_a_policy_of_another_depth(self):
        policy = KVPolicy.uniform("K4V4", layers=5, scheme=PER_TOKEN)
        with pytest.raises(PolicyError, match=r"one entry per cached layer \(3\); got 5"):
            QuantizedKVCache(policy, tiny_config("llama"))

    def test_a_policy_of_other_heads(self):
        heads = LayerPrecision(heads=(PrecisionPair.parse("KV4"),) * 3)
        policy = KVPolicy(scheme=PER_TOKEN, layers=(LayerPrecision(), heads, LayerPrecision()))
        with pytest.raises(PolicyError, match="Layer 1 has 2 KV heads; the policy gives 3"):
            QuantizedKVCache(policy, tiny_config("llama"))

    def test_a_group_that_does_not_divide_head_dim(self):
        policy = KVPolicy.uniform("K4V4", layers=3, scheme=QuantScheme.per_token(group_size=10))
        with pytest.raises(
            SchemeError, match=r"group_size must divide head_dim \(16\); got 10. Use one of 2, 4, 8, 16"
        ):
            QuantizedKVCache(policy, tiny_config("llama"))

    def test_a_model_of_another_shape(self, models):
        cache = QuantizedKVCache(_policy(models["llama"]), tiny_config("llama"))
        with pytest.raises(ModelError, match="Build the cache for this model"):
            _generate(models["qwen2"], _prompt(), cache)


def test_a_model_that_is_set_to_use_no_cache_is_refused():
    model = tiny_model("llama")
    model.generation_config.use_cache = False
    with pytest.raises(ModelError, match=r"generation_config\.use_cache"):
        build_cache(_policy(model), model)
    model.generation_config.use_cache = True
    full = _policy(model, "K16V16")
    ids = _prompt()
    assert torch.equal(_generate(model, ids, build_cache(full, model)), _generate(model, ids, None))
