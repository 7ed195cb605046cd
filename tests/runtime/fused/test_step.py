"""Steps through fused operations against the model's own, over the reference operations."""

import gc
import weakref

import pytest
import torch
import transformers as tf
from torch import nn
from transformers import DynamicCache

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.decoding import Decoder
from kvtuner_core.runtime.fused.step import FusedStep
from kvtuner_core.runtime.planned_step import PlannedStep
from tests.fakes.models import tiny_config, tiny_model

SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "kivi, odd": QuantScheme.kivi(residual_length=7, sink_length=2),
}
SIZES = {
    "llama": {"head_dim": 32},
    "mistral": {"head_dim": 32},
    "qwen2": {"hidden_size": 128},
    "gemma3": {"head_dim": 32},
    "qwen3": {"head_dim": 32},
}


def _model(family):
    if family != "qwen3":
        return tiny_model(family, **SIZES[family])
    config = tf.Qwen3Config(**tiny_config("llama", **SIZES[family]).to_dict())
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def models():
    return {family: _model(family) for family in SIZES}


def _policy(model, scheme):
    names = ("K8V8", "K16V16", "K8V4")
    pairs = (LayerPrecision(pair=PrecisionPair.parse(names[i % 3])) for i in range(model.config.num_hidden_layers))
    return KVPolicy(scheme=scheme, layers=tuple(pairs))


def _ids(batch, tokens):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("family", SIZES)
def test_a_fused_step_gives_the_models_own_logits(models, family):
    model, ids = models[family], _ids(2, 40)
    own, ours = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with torch.no_grad():
        for cache in (own, ours):
            model(ids[:, :30], past_key_values=cache)
        step = FusedStep(model)
        for at in range(30, 40):
            expected = model(ids[:, at : at + 1], past_key_values=own).logits[:, -1]
            found = step(ids[:, at : at + 1], torch.full((2, 1), at), ours)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("family", SIZES)
def test_a_planned_step_goes_on_by_itself_over_the_buffers(models, family, scheme):
    model, ids = models[family], _ids(2, 80)
    padding = torch.tensor([0, 9])
    policy = _policy(model, scheme)
    with torch.no_grad():
        plain = Decoder(model, QuantizedKVCache(policy, model, in_place=False), padding=padding)
        cache = QuantizedKVCache(policy, model, in_place=True, max_tokens=80)
        ours = Decoder(model, cache, padding=padding)
        assert torch.allclose(ours.prefill(ids[:, :40]), plain.prefill(ids[:, :40]), atol=1e-4)
        step = PlannedStep(model, cache, ids=ids[:, 40:41], padding=padding)
        step.settle()
        assert step.why_plain is None
        for at in range(40, 80):
            step.ids.copy_(ids[:, at : at + 1])
            # A code on the edge of rounding may be a neighbour.
            assert torch.allclose(step.run(), plain.step(ids[:, at : at + 1]), atol=0.02)
            for layer in cache.layers:
                layer.advance(1)
        cache.planner.release()
        assert cache.measured_bytes() == plain._cache.measured_bytes()


@pytest.mark.parametrize("family", ["phi", "gpt_neox"])
def test_other_families_run_their_own_forward(family):
    model, ids = tiny_model(family, hidden_size=128), _ids(1, 30)
    cache = QuantizedKVCache(_policy(model, SCHEMES["per-token"]), model, in_place=True, max_tokens=30)
    with torch.no_grad():
        Decoder(model, cache).prefill(ids[:, :20])
        step = PlannedStep(model, cache, ids=ids[:, 20:21])
        step.settle()
        assert "not among the families" in step.why_plain
        assert step.run().isfinite().all()


def test_a_step_that_is_let_go_frees_its_cache_at_once():
    model, ids = tiny_model("llama", head_dim=32), _ids(1, 30)
    cache = QuantizedKVCache(_policy(model, SCHEMES["per-token"]), model, in_place=True, max_tokens=30)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        with torch.no_grad():
            Decoder(model, cache).prefill(ids[:, :20])
            step = PlannedStep(model, cache, ids=ids[:, 20:21])
            step.settle()
            step.run()
        del step, cache
        assert gone() is None
    finally:
        gc.enable()


def test_a_model_that_computes_something_else_is_noticed():
    model, ids = tiny_model("llama", head_dim=32), _ids(1, 30)
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.ReLU()
    cache = QuantizedKVCache(_policy(model, SCHEMES["per-token"]), model, in_place=True, max_tokens=30)
    with torch.no_grad():
        Decoder(model, cache).prefill(ids[:, :20])
        step = PlannedStep(model, cache, ids=ids[:, 20:21])
        step.settle()
        assert "would differ" in step.why_plain
        found = step.run()
        cache.planner.release()
        other = QuantizedKVCache(_policy(model, SCHEMES["per-token"]), model, in_place=True)
        decoder = Decoder(model, other)
        decoder.prefill(ids[:, :20])
        assert torch.allclose(found, decoder.step(ids[:, 20:21]), atol=1e-4)
