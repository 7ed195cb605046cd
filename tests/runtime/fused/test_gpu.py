"""Fused steps on a GPU: captured, again and again, and for more rows than the kernels take."""

import pytest
import torch
from transformers import DynamicCache

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.decoding import Decoder
from kvtuner_core.runtime.fused.step import FusedStep
from kvtuner_core.runtime.planned_step import PlannedStep
from tests.fakes.models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

WIDE = {"hidden_size": 1024, "intermediate_size": 1536, "head_dim": 128, "num_attention_heads": 8}


def _model(family="llama", **more):
    return tiny_model(family, sharpness=1.5, **more).bfloat16().cuda()


def _ids(batch, tokens):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(tokens)).cuda()


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize(("pair", "scheme"), [
    ("K4V2", QuantScheme.per_token()),
    ("K8V4", QuantScheme.kivi()),
    ("K4V16", QuantScheme.kivi()),
    ("K16V16", QuantScheme.per_token()),
])  # fmt: skip
def test_the_same_step_gives_the_same_logits_however_often_it_is_replayed(batch, pair, scheme):
    model, ids = _model(**WIDE), _ids(batch, 301)
    policy = KVPolicy.uniform(pair, layers=3, scheme=scheme)
    cache = QuantizedKVCache(policy, model, max_tokens=310)
    with torch.inference_mode():
        Decoder(model, cache).prefill(ids[:, :300])
        step = PlannedStep(model, cache, ids=ids[:, 300:])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step.settle()
        torch.cuda.current_stream().wait_stream(stream)
        assert step.why_plain is None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step.run()
        found = []
        for _ in range(50):
            graph.replay()
            found.append(logits.clone())
            step.rewind()
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("batch", [64, 65, 130])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_many_sequences_give_the_models_own_logits(family, batch):
    sizes = {"hidden_size": 512} if family == "qwen2" else WIDE
    model, ids = _model(family, **sizes), _ids(batch, 21)
    own, ours = (DynamicCache(config=model.config) for _ in range(2))
    with torch.inference_mode():
        for cache in (own, ours):
            model(ids[:, :20], past_key_values=cache)
        expected = model(ids[:, 20:], past_key_values=own).logits[:, -1].float()
        found = FusedStep(model)(ids[:, 20:], torch.full((batch, 1), 20, device="cuda"), ours).float()
    assert float((found - expected).norm() / expected.norm()) < 2e-2
