"""The cache in preallocated buffers against the plain one, which is the definition, on tiny models of many families."""

import copy

import pytest
import torch
from transformers import DynamicCache

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme, Rotation
from kvtuner_core.errors import InputError
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.geometry import layer_geometry
from kvtuner_core.runtime.in_place.layer import InPlaceLayer
from kvtuner_core.runtime.in_place.support import Kernels
from tests.fakes.models import FAMILIES, reshaping_model, tiny_model

SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "per-token, groups, window, sinks": QuantScheme.per_token(group_size=16, residual_length=5, sink_length=3),
    "kivi": QuantScheme.kivi(),
    "kivi, odd": QuantScheme.kivi(residual_length=7, sink_length=2),
}
PAD = 256
_NARROW = ("qwen2", "phi", "gpt_neox")


@pytest.fixture(scope="module")
def models():
    return {
        name: tiny_model(name, **({"hidden_size": 128} if name in _NARROW else {"head_dim": 32})) for name in FAMILIES
    }


def _mixed(model, scheme):
    """Another pair in each layer, one of them exact, and in each head of the last."""
    names = ("K8V2", "K16V16", "K2V4")
    *layers, last = layer_geometry(model.config)
    pairs = [LayerPrecision(pair=PrecisionPair.parse(names[index % 2])) for index in range(len(layers))]
    heads = tuple(PrecisionPair.parse(names[index % 3]) for index in range(last.kv_heads))
    return KVPolicy(scheme=scheme, layers=(*pairs, LayerPrecision(heads=heads)))


def _prompt(tokens, batch=2):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def _caches(policy, model, **options):
    return [QuantizedKVCache(policy, model, in_place=in_place, **options) for in_place in (False, True)]


def _generate(model, ids, cache, **options):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, **options}
    torch.manual_seed(4)
    return model.generate(ids, past_key_values=cache, **options)


def _fine(scheme):
    """Pairs whose steps are so small that a code on the edge of rounding hardly matters."""
    return KVPolicy(
        scheme=scheme, layers=tuple(LayerPrecision(pair=PrecisionPair.parse(p)) for p in ("K8V8", "K16V16", "K8V8"))
    )


def _alike(found, expected):
    return torch.allclose(found, expected, atol=0.02)


def _predicted(cache, batch):
    return cache_bytes(cache.policy, cache.geometry, tokens=cache.get_seq_length(), batch=batch, full_bytes=4)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_generate_what_the_plain_cache_does_and_hold_as_many_bytes(models, family, scheme):
    model = models[family]
    left_padded = _prompt(60)
    left_padded[0, :9] = PAD
    for ids, beams, options in (
        (_prompt(70), 1, {"max_new_tokens": 40}),
        (_prompt(4, batch=1), 1, {"max_new_tokens": 8}),
        (_prompt(130), 3, {"num_beams": 3}),
        (left_padded, 1, {"attention_mask": (left_padded != PAD).long(), "max_new_tokens": 30}),
        (_prompt(66), 1, {"do_sample": True, "temperature": 1.3, "top_k": 0}),
    ):
        plain, in_place = _caches(_mixed(model, scheme), model)
        expected = _generate(model, ids, plain, **options)
        assert torch.equal(_generate(model, ids, in_place, **options), expected), options
        assert in_place.kernels is Kernels.TRITON
        assert in_place.why_reference is None
        assert in_place.measured_bytes() == plain.measured_bytes() == _predicted(in_place, len(ids) * beams)
        assert in_place.reserved_bytes() >= in_place.measured_bytes()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_updates_of_any_length_read_what_the_plain_cache_reads(models, family, scheme):
    # One prompt, then single tokens, a few at once, many at once: several turns of a conversation.
    model, ids = models[family], _prompt(400)
    plain, in_place = _caches(_fine(scheme), model)
    begin = 0
    with torch.no_grad():
        for count in (50, 1, 1, 3, 8, 2, 40, 1, 5, 100, 1, 64, 7, 1):
            part = ids[:, begin : begin + count]
            expected = model(part, past_key_values=plain).logits
            assert _alike(model(part, past_key_values=in_place).logits, expected), (begin, count)
            begin += count
    assert in_place.measured_bytes() == plain.measured_bytes()
    for one, other in zip(plain.layers, in_place.layers, strict=True):
        for held, expected in zip(other.history(), one.history(), strict=True):
            assert torch.allclose(held, expected, atol=0.2)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_cropping_keeps_what_the_plain_cache_keeps(models, scheme):
    model, ids = models["llama"], _prompt(120)
    for removed in (1, 6, 33, 70, 118, 120):
        plain, in_place = _caches(_fine(scheme), model)
        with torch.no_grad():
            for cache in (plain, in_place):
                model(ids, past_key_values=cache)
                model(ids[:, :1], past_key_values=cache)
                cache.crop(-removed)
            following = [model(ids[:, :3], past_key_values=cache).logits for cache in (plain, in_place)]
            assert _alike(*following), removed
            again = [model(ids[:, :60], past_key_values=cache).logits for cache in (plain, in_place)]
        assert _alike(*again), removed
        assert in_place.kernels is Kernels.TRITON
        assert in_place.measured_bytes() == plain.measured_bytes()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_prompt_can_read_its_quantised_self(models, family):
    model, ids = models[family], _prompt(90)
    plain, in_place = _caches(_mixed(model, SCHEMES["kivi"]), model, prefill=PrefillMode.QUANTISED)
    assert torch.equal(_generate(model, ids, in_place), _generate(model, ids, plain))


def test_assisted_decoding_goes_on_with_the_plain_layers(models):
    model, ids = models["llama"], _prompt(40, batch=1)
    plain, in_place = _caches(_mixed(model, SCHEMES["kivi"]), model)
    options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 25}
    assert torch.equal(_generate(model, ids, in_place, **options), _generate(model, ids, plain, **options))
    assert "assisted" in in_place.why_reference


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_layer_can_be_made_plain_at_any_time(models, family, scheme):
    model, ids = models[family], _prompt(100)
    plain, in_place = _caches(_mixed(model, scheme), model)
    first = [_generate(model, ids, cache) for cache in (plain, in_place)]
    for layer in in_place.layers:
        layer.make_plain("the test wants it")
    assert in_place.kernels is Kernels.REFERENCE
    assert in_place.measured_bytes() == plain.measured_bytes() == in_place.reserved_bytes()
    longer = torch.cat([first[0], ids[:, :2]], dim=1)
    assert torch.equal(_generate(model, longer, in_place), _generate(model, longer, plain))


def test_a_model_whose_attention_is_not_ours_falls_back(models):
    model = copy.deepcopy(models["llama"])
    policy = _mixed(model, SCHEMES["per-token"])
    plain = QuantizedKVCache(policy, model.config, in_place=False)
    unknown = QuantizedKVCache(policy, model.config, in_place=True)
    for config in {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }.values():
        config._attn_implementation_internal = "sdpa"
    ids = _prompt(30)
    assert torch.equal(_generate(model, ids, unknown), _generate(model, ids, plain))
    assert unknown.why_reference == "layer 0: the model's attention is not the fused one"


@pytest.mark.parametrize("kind", ["diffllama", "jetmoe"])
def test_a_model_that_attends_to_something_else_than_it_caches_falls_back(kind):
    model = reshaping_model(kind)
    policy = KVPolicy.uniform("K8V8", layers=3, scheme=SCHEMES["per-token"])
    plain, buffers = _caches(policy, model)
    ids = _prompt(30, batch=1)
    assert torch.equal(_generate(model, ids, buffers), _generate(model, ids, plain))
    assert buffers.kernels is Kernels.REFERENCE


@pytest.mark.parametrize("padded", [False, True])
def test_generate_never_unpacks_the_history(models, monkeypatch, padded):
    model, ids = models["mistral"], _prompt(50)
    cache = QuantizedKVCache(_mixed(model, SCHEMES["kivi"]), model, in_place=True)
    mask = torch.ones_like(ids)
    mask[1, : 20 * padded] = 0
    monkeypatch.setattr(InPlaceLayer, "read", lambda *_: pytest.fail("The history was unpacked."))
    _generate(model, ids, cache, attention_mask=mask)
    assert cache.kernels is Kernels.TRITON


def test_the_added_attention_leaves_other_caches_alone(models):
    model, ids = models["llama"], _prompt(30)
    before = _generate(copy.deepcopy(model), ids, DynamicCache(config=model.config))
    QuantizedKVCache(_mixed(model, SCHEMES["kivi"]), model, in_place=True)
    assert torch.equal(_generate(model, ids, DynamicCache(config=model.config)), before)


def test_masks_with_holes_are_read_through_the_models_own_attention(models):
    model, ids = models["llama"], _prompt(40)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, 10:20] = 0
    mask[1, :5] = 0
    plain, in_place = _caches(_mixed(model, SCHEMES["per-token"]), model)
    found = [_generate(model, ids, cache, attention_mask=mask) for cache in (plain, in_place)]
    assert torch.equal(*found)


@pytest.mark.parametrize("pair", ["K16V4", "K8V16"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("scheme", [SCHEMES["per-token, groups, window, sinks"], SCHEMES["kivi"]])
def test_one_side_can_stay_unquantised(models, family, scheme, pair):
    model, ids = models[family], _prompt(70)
    policy = KVPolicy.uniform(pair, layers=3, scheme=scheme)
    plain, in_place = _caches(policy, model)
    expected = _generate(model, ids, plain, max_new_tokens=40)
    assert torch.equal(_generate(model, ids, in_place, max_new_tokens=40), expected)
    assert in_place.kernels is Kernels.TRITON
    assert in_place.measured_bytes() == plain.measured_bytes() == _predicted(in_place, 2)


@pytest.mark.parametrize("pair", ["K4V4", "K16V16"])
def test_buffers_grow_by_segments_and_nothing_stored_is_copied(models, pair):
    model, ids = models["llama"], _prompt(900, batch=1)
    cache = QuantizedKVCache(
        KVPolicy.uniform(pair, layers=3, scheme=SCHEMES["per-token"]), model, in_place=True, max_tokens=64
    )
    held = set()
    with torch.no_grad():
        model(ids[:, :50], past_key_values=cache)
        store = cache.layers[0].stores[0]
        for begin in range(50, 900, 5):
            logits = model(ids[:, begin : begin + 5], past_key_values=cache).logits
            now = {tensor.data_ptr() for tensor in store.tensors()}
            assert held <= now
            held = now
        expected = model(ids).logits[:, -5:]
    assert len(store.keys) > 2
    assert cache.reserved_bytes() < 2 * cache.measured_bytes()
    assert cache.measured_bytes() == _predicted(cache, 1)
    if pair == "K16V16":
        assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(("scheme", "pair", "reason"), [
    (QuantScheme.per_token(symmetric=True), "K4V4", "its codes are symmetric"),
    (QuantScheme.per_token(rotation=Rotation.KEYS_AND_VALUES), "K4V4", "its codes are rotated"),
    (QuantScheme.kivi(residual_share=0.2), "K4V4", "its full-precision window grows with the context"),
    (QuantScheme.per_token(symmetric=True), "K16V4", "its codes are symmetric"),
    (QuantScheme.kivi(group_size=16), "K4V4", "its channel groups have 16 tokens, not 32"),
    (QuantScheme.per_token(), "K4V3", "head_dim must be a multiple of 64 at 3 bits"),
])  # fmt: skip
def test_what_the_kernels_cannot_hold_is_held_plainly_and_says_why(models, scheme, pair, reason):
    model, ids = models["llama"], _prompt(40)
    policy = KVPolicy.uniform(pair, layers=3, scheme=scheme)
    plain, in_place = _caches(policy, model)
    assert torch.equal(_generate(model, ids, in_place), _generate(model, ids, plain))
    assert reason in in_place.why_reference


def test_the_choice_of_kernels_can_be_overridden(models, monkeypatch):
    model, ids = models["llama"], _prompt(20)
    policy = _mixed(model, SCHEMES["kivi"])
    cache = QuantizedKVCache(policy, model)
    _generate(model, ids, cache)
    assert cache.why_reference == "layer 0: the reference was chosen"
    monkeypatch.setenv("KVTUNER_KERNELS", "cuda")
    with pytest.raises(InputError, match="KVTUNER_KERNELS must be reference or triton; got 'cuda'"):
        QuantizedKVCache(policy, model)
    monkeypatch.setenv("KVTUNER_KERNELS", "triton")
    with pytest.raises(InputError, match="needs a model on a CUDA device"):
        QuantizedKVCache(policy, model)
