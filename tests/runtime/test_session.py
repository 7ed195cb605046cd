import dataclasses
import weakref

import numpy as np
import pytest
import torch
import transformers

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import Granularity, QuantScheme, Rotation
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.errors import ModelError, PolicyError, PromptError, SchemeError
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.geometry import model_info
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.session import Session
from tests.fakes.models import FAMILIES, biased_model, reshaping_model, tiny_model, tiny_tokenizer

TEXTS = tuple("".join(chr(97 + (i * i * k + i * 7 + k) % 26) for i in range(90)) for k in (3, 5, 8))

SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "per-token groups sinks": QuantScheme.per_token(group_size=8, residual_length=3, sink_length=5, symmetric=True),
    "kivi": QuantScheme.kivi(group_size=4, residual_length=6),
    "kivi symmetric sinks": QuantScheme.kivi(group_size=8, residual_length=3, symmetric=True, sink_length=3),
    "values per channel": QuantScheme(
        key_granularity=Granularity.TOKEN,
        value_granularity=Granularity.CHANNEL,
        group_size=8,
    ),
    "window beyond the prefix": QuantScheme.per_token(residual_length=70),
    "sinks beyond the prefix": QuantScheme.per_token(sink_length=55),
    "rotated": QuantScheme.per_token(sink_length=2, rotation=Rotation.KEYS_AND_VALUES),
    "share, rotated keys": QuantScheme.kivi(
        group_size=4, residual_length=6, residual_share=0.25, rotation=Rotation.KEYS
    ),
}


def make_loaded(model, dtype=torch.float64):
    """In float64: a code that sits on an edge would else round differently in the two ways of computing it."""
    model = model.to(dtype)
    info = model_info("tiny", model)
    return LoadedModel(model=model, tokenizer=tiny_tokenizer(), info=info, device=torch.device("cpu"), dtype=dtype)


def make_spec(scheme, *, texts=TEXTS, prefix=53, suffix=17, completions=()):
    prompts = tuple(
        Prompt(text=text, completion=completions[index] if completions else "") for index, text in enumerate(texts)
    )
    return EvaluationSpec(
        model=ModelSpec(reference="tiny"),
        prompts=PromptSet(name="texts", role=PromptRole.USER, prompts=prompts),
        scheme=scheme,
        prefix_tokens=prefix,
        suffix_tokens=suffix,
    )


def mixed_policy(scheme, layers, *, heads=0):
    names = ("K2V4", "K16V2", "K8V16")
    pairs = [PrecisionPair.parse(names[index % 3]) for index in range(layers)]
    if not heads:
        return KVPolicy.from_pairs(pairs, scheme=scheme)
    others = [PrecisionPair.parse(name) for name in ("K3V2", "K16V16", "K2V8", "K4V16")]
    precision = LayerPrecision(heads=tuple(others[head % 4] for head in range(heads)))
    return KVPolicy(scheme=scheme, layers=(precision, *(LayerPrecision(pair=pair) for pair in pairs[1:])))


def decoded_logits(model, prompt, policy):
    """Token by token through the packed cache: the definition of what a score measures."""
    cache = QuantizedKVCache(policy, model)
    with torch.inference_mode():
        model(torch.tensor([prompt.prefix]), past_key_values=cache, use_cache=True)
        steps = [
            model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits for token in prompt.suffix
        ]
    return torch.cat(steps, dim=1)[0]


def replayed_logits(session, policy):
    found = {}
    with torch.inference_mode():
        for prepared in session.prepared:
            logits = session._replayer.logits(
                prepared.batch, prepared.banked, [policy.layers], outputs=prepared.outputs
            ).unflatten(0, prepared.batch.suffix_ids.shape)
            found.update({prompt.index: logits[row].clone() for row, prompt in enumerate(prepared.batch.prompts)})
    return found


def assert_same_as_decoding(model, session, policy):
    replayed = replayed_logits(session, policy)
    for prompt in session.prompts:
        torch.testing.assert_close(replayed[prompt.index], decoded_logits(model, prompt, policy), rtol=0, atol=2e-4)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_decoding_token_by_token(family, scheme):
    model = tiny_model(family)
    session = Session(make_loaded(model), make_spec(scheme, texts=TEXTS[:2]))
    assert_same_as_decoding(model, session, mixed_policy(scheme, len(session.layers)))


@pytest.mark.parametrize("scheme", list(SCHEMES.values())[:4], ids=list(SCHEMES)[:4])
@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])
def test_bits_per_head_equal_decoding_token_by_token(family, scheme):
    model = tiny_model(family)
    session = Session(make_loaded(model), make_spec(scheme, texts=TEXTS[:1]))
    assert_same_as_decoding(model, session, mixed_policy(scheme, len(session.layers), heads=session.layers[0].kv_heads))


@pytest.mark.parametrize("prefix", [8, 31, 64])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_any_prefix_length_equals_decoding(family, prefix):
    scheme = QuantScheme.kivi(group_size=4, residual_length=6)
    model = tiny_model(family)
    session = Session(make_loaded(model), make_spec(scheme, texts=TEXTS[:1], prefix=prefix, suffix=11))
    assert_same_as_decoding(model, session, KVPolicy.uniform("K2V2", layers=3, scheme=scheme))


def test_prompts_of_different_lengths_are_scored_together_and_apart_alike():
    scheme = QuantScheme.kivi(group_size=4, residual_length=2)
    model = tiny_model("mistral")
    texts = (TEXTS[0], TEXTS[1][:40], TEXTS[2][:55])
    completions = ("abcdefghijk", "xyzxyz", "hello there")
    session = Session(make_loaded(model), make_spec(scheme, texts=texts, completions=completions, suffix=9))
    assert sorted((len(prompt.prefix), len(prompt.suffix)) for prompt in session.prompts) == [(41, 6), (53, 9), (53, 9)]
    policy = KVPolicy.uniform("K2V4", layers=3, scheme=scheme)
    assert_same_as_decoding(model, session, policy)
    score = session.score(policy)
    assert score.tokens_per_prompt == (9, 6, 9)
    alone = Session(
        make_loaded(model), make_spec(scheme, texts=texts[1:2], completions=completions[1:2], suffix=9)
    ).score(policy)
    assert alone.kl.mean == pytest.approx(score.kl_per_prompt[1], rel=1e-3)


def test_large_key_biases_hurt_per_token_keys_more_than_per_channel_keys():
    model = biased_model()
    kl = {}
    for scheme in (QuantScheme.per_token(), QuantScheme.kivi(group_size=8, residual_length=8)):
        session = Session(make_loaded(model), make_spec(scheme))
        policy = KVPolicy.uniform("K4V8", layers=3, scheme=scheme)
        assert_same_as_decoding(model, session, policy)
        kl[scheme.name] = session.score(policy).kl.mean
    assert kl["per-token"] > 5 * kl["kivi"]


def test_a_score_is_what_the_two_sets_of_logits_give():
    scheme = QuantScheme.per_token()
    model = tiny_model("llama")
    session = Session(make_loaded(model), make_spec(scheme))
    policy = KVPolicy.uniform("K4V2", layers=3, scheme=scheme)
    full = KVPolicy.uniform("KV16", layers=3, scheme=scheme)
    score = session.score(policy, seed=3)
    kl, agree, change = [], [], []
    for prompt in session.prompts:
        p = decoded_logits(model, prompt, full).double().log_softmax(-1)
        q = decoded_logits(model, prompt, policy).double().log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).mean().item())
        agree.append((p.argmax(-1) == q.argmax(-1)).double().mean().item())
        labels = torch.tensor([*prompt.suffix[1:], prompt.following])
        change.append((p - q).gather(-1, labels[:, None]).mean().item())
    np.testing.assert_allclose(score.kl_per_prompt, kl, rtol=1e-3)
    assert score.kl.mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert score.kl.low < score.kl.mean < score.kl.high
    assert score.top1_agreement == pytest.approx(np.mean(agree))
    assert score.nll_change == pytest.approx(np.mean(change), abs=1e-4)
    assert session.score(policy, seed=3).kl == score.kl


def test_full_precision_scores_exactly_zero():
    scheme = QuantScheme.per_token()
    score = Session(make_loaded(tiny_model("qwen2")), make_spec(scheme)).score(
        KVPolicy.uniform("KV16", layers=3, scheme=scheme)
    )
    assert (score.kl.mean, score.top1_agreement, score.nll_change) == (0.0, 1.0, 0.0)


def test_layers_before_the_first_quantised_one_are_skipped_exactly():
    scheme = QuantScheme.per_token()
    session = Session(make_loaded(tiny_model("gpt_neox")), make_spec(scheme))
    pairs = [PrecisionPair.parse(name) for name in ("KV16", "KV16", "K2V2")]
    policy = KVPolicy.from_pairs(pairs, scheme=scheme)
    skipping = session.score(policy)
    assert session.prepared[0].outputs
    for prepared in session.prepared:
        prepared.outputs, prepared.trail = [], None
    assert session.score(policy).kl == skipping.kl


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt_neox", "phi"])
def test_a_score_does_not_depend_on_the_policies_before_it(family):
    """Each pass starts where its policy leaves the one before: also after full precision, and after itself."""
    scheme = QuantScheme.kivi(group_size=8, residual_length=4, sink_length=2)
    session = Session(make_loaded(tiny_model(family)), make_spec(scheme))
    assert all(prepared.trail is not None for prepared in session.prepared)
    rng = np.random.default_rng(3)
    choices = [PrecisionPair.parse(name) for name in ("K2V4", "KV16", "K8V2")]
    policies = [
        KVPolicy.from_pairs([choices[index] for index in rng.integers(0, 3, len(session.layers))], scheme=scheme)
        for _ in range(12)
    ]
    policies += [policies[-1], mixed_policy(scheme, len(session.layers), heads=session.layers[0].kv_heads)]
    along = [session.score(policy) for policy in policies]
    for policy, found in zip(policies, along, strict=True):
        for prepared in session.prepared:
            prepared.trail = None
        alone = session.score(policy)
        assert dataclasses.replace(found, seconds=0) == dataclasses.replace(alone, seconds=0)


def test_a_model_whose_layers_give_several_states_per_token_skips_none():
    """Gemma 3n's layers hand on four states of each token; here, unlike in the real ones, none share their keys."""
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 259}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_kv_shared_layers": 0}
    layers = {"layer_types": ["full_attention"] * 3, "activation_sparsity_pattern": [0.0] * 3, "laurel_rank": 4}
    beside = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 259}
    config = transformers.Gemma3nTextConfig(**sizes, **heads, **layers, **beside)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    scheme = QuantScheme.per_token()
    session = Session(make_loaded(model), make_spec(scheme))
    assert all(not prepared.outputs and prepared.trail is None for prepared in session.prepared)
    assert session.score(KVPolicy.uniform("K2V2", layers=3, scheme=scheme)).kl.mean > 0


def test_what_a_policy_left_behind_goes_before_the_next_pass_fills_its_place():
    scheme = QuantScheme.per_token()
    session = Session(make_loaded(tiny_model("llama")), make_spec(scheme))
    first, second = (KVPolicy.uniform(name, layers=3, scheme=scheme) for name in ("K4V4", "K2V2"))
    expected = session.score(first)
    known, outputs = session.prepared[0].trail.start(first.layers)
    assert known == 3
    before, alive = [weakref.ref(output) for output in outputs], []
    del outputs

    def broken(*_):
        alive.append(sum(output() is not None for output in before))
        raise KeyboardInterrupt

    handle = session.loaded.model.model.layers[2].register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        session.score(second)
    handle.remove()
    assert alive == [0]
    assert session.score(first).kl == expected.kl, "A pass that broke off leaves nothing of its own."


def test_a_small_bank_gives_the_same_scores(monkeypatch):
    scheme = QuantScheme.kivi(group_size=8, residual_length=0)
    spec = make_spec(scheme)
    policy = mixed_policy(scheme, 3)
    loaded = make_loaded(tiny_model("llama"))
    plenty = Session(loaded, spec).score(policy)
    monkeypatch.setattr("kvtuner_core.runtime.footprint._BANK_SHARE", {"cpu": 0.0})
    session = Session(loaded, spec)
    assert session.score(policy).kl == plenty.kl
    assert session.prepared[0].banked[0].bank.bytes == 0


def test_the_model_is_left_as_it_was():
    model = tiny_model("gemma3")
    before = model.config._attn_implementation
    scheme = QuantScheme.per_token()
    Session(make_loaded(model), make_spec(scheme)).score(KVPolicy.uniform("K4V4", layers=3, scheme=scheme))
    assert model.config._attn_implementation == before
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_what_does_not_fit_is_refused_in_one_line():
    loaded = make_loaded(tiny_model("llama"))
    scheme = QuantScheme.per_token()
    with pytest.raises(PromptError, match="prompt 2 has"):
        Session(loaded, make_spec(scheme, texts=(TEXTS[0], "short")))
    with pytest.raises(PromptError, match="positions"):
        Session(loaded, make_spec(scheme, prefix=600))
    with pytest.raises(SchemeError, match="group_size"):
        Session(loaded, make_spec(QuantScheme.per_token(group_size=12)))
    session = Session(loaded, make_spec(scheme))
    with pytest.raises(PolicyError, match="one entry per cached layer"):
        session.score(KVPolicy.uniform("K4V4", layers=2, scheme=scheme))


@pytest.mark.parametrize(
    ("kind", "reason"), [("jetmoe", "between its cache and its attention"), ("diffllama", "its own forward pass")]
)
def test_a_model_that_attends_to_something_else_than_it_caches_is_refused(kind, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        Session(make_loaded(reshaping_model(kind)), make_spec(QuantScheme.per_token()))
    assert "\n" not in str(caught.value)


def test_the_seed_moves_only_the_interval():
    scheme = QuantScheme.per_token()
    session = Session(make_loaded(tiny_model("llama")), make_spec(scheme))
    policy = KVPolicy.uniform("K2V2", layers=3, scheme=scheme)
    one, two = (dataclasses.replace(session.score(policy, seed=seed), seconds=0) for seed in (0, 1))
    assert dataclasses.replace(one, kl=two.kl) == two


def _random_scheme(rng):
    granularities = [Granularity.TOKEN, Granularity.CHANNEL]
    key, value = (granularities[index] for index in rng.integers(2, size=2))
    grouped = Granularity.CHANNEL in (key, value)
    sizes = [4, 8] if grouped else [None, 4, 8]
    return QuantScheme(
        key_granularity=key,
        value_granularity=value,
        group_size=sizes[int(rng.integers(len(sizes)))],
        symmetric=bool(rng.integers(2)),
        residual_length=int(rng.integers(0, 40)),
        sink_length=int(rng.integers(0, 7)),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3", "gpt_neox"])
def test_random_policies_schemes_and_windows_equal_decoding_token_by_token(family, seed):
    rng = np.random.default_rng([seed, len(family)])
    scheme = _random_scheme(rng)
    model = tiny_model(family, seed=seed)
    prefix, suffix = int(rng.integers(8, 70)), int(rng.integers(2, 18))
    session = Session(make_loaded(model), make_spec(scheme, texts=TEXTS[:1], prefix=prefix, suffix=suffix))
    for _ in range(2):
        widths = [(16, 8, 4, 3, 2)[int(index)] for index in rng.integers(5, size=6)]
        pairs = [
            PrecisionPair(key_bits=key, value_bits=value) for key, value in zip(widths[::2], widths[1::2], strict=True)
        ]
        assert_same_as_decoding(model, session, KVPolicy.from_pairs(pairs, scheme=scheme))
