"""Captured layers: what speaks against them anywhere, and their numbers on a GPU."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair, candidate_pairs
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime import layer_graphs, session
from kvtuner_core.runtime.chosen import Choices
from kvtuner_core.runtime.head import final_states
from kvtuner_core.runtime.interception import decoder_layers
from kvtuner_core.runtime.layer_graphs import LayerGraphs
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.profiling import profile_layer
from kvtuner_core.runtime.session import Session
from tests.fakes.models import FAMILIES, tiny_model
from tests.runtime.test_session import make_loaded, make_spec


class _Layer(nn.Module):
    def forward(self, hidden_states, *, positions):
        return hidden_states + positions


def _choices(*names):
    policies = [tuple(LayerPrecision(pair=PrecisionPair.parse(name)) for name in layers) for layers in names]
    return Choices.of(policies, rows=1, device=torch.device("cpu"))


def _pass(graphs, layers, positions):
    hidden = torch.zeros(2)
    with graphs.instead_of(layers, 1):
        for layer in layers:
            hidden = layer(hidden, positions=positions)
    return hidden


def test_layers_are_called_as_they_are_where_nothing_can_be_captured(monkeypatch):
    monkeypatch.setattr(layer_graphs, "_CALLS", 0)
    monkeypatch.setattr(layer_graphs.torch.cuda, "graph_pool_handle", _no_graphs)
    layers = nn.ModuleList([_Layer() for _ in range(3)])
    graphs = LayerGraphs(room=0)
    graphs.begin(_choices(["K2V2"] * 3))
    assert _pass(graphs, layers, torch.ones(2)).tolist() == [3, 3]
    assert graphs.why_eager == "no graphs here"
    assert graphs.captured == 0
    assert _pass(graphs, layers, torch.ones(2)).tolist() == [3, 3]
    assert not any("forward" in vars(layer) for layer in layers)


def _no_graphs():
    raise RuntimeError("no graphs  here")


def test_layers_that_are_given_other_things_are_not_captured():
    layers = nn.ModuleList([_Layer() for _ in range(3)])
    graphs = LayerGraphs(room=0)
    graphs.begin(_choices(["K2V2"] * 3))
    _pass(graphs, layers, torch.ones(2))
    _pass(graphs, layers, torch.ones(2))
    assert graphs.why_eager is None
    assert _pass(graphs, layers, torch.full((2,), 2.0)).tolist() == [6, 6]
    assert "other things" in graphs.why_eager


@pytest.mark.parametrize("keeps", [False, True])
def test_a_model_that_keeps_what_earlier_layers_gave_is_not_captured(keeps):
    # Captured layers write into one tensor, so the sum below would be of the last layer's output, twice.
    layers = nn.ModuleList([_Layer() for _ in range(3)])
    graphs = LayerGraphs(room=0)
    graphs.begin(_choices(["K2V2"] * 3))
    hidden, kept = torch.zeros(2), []
    with graphs.instead_of(layers, 0):
        for layer in layers:
            hidden = layer(hidden, positions=torch.ones(2))
            kept += [hidden] if keeps else []
    assert (graphs.why_eager is None) == (not keeps)
    assert not keeps or "keeps" in graphs.why_eager


@pytest.mark.parametrize("family", FAMILIES)
def test_models_keep_nothing_and_give_their_layers_the_same_in_every_pass(family):
    model = tiny_model(family)
    graphs, generator = LayerGraphs(room=0), torch.Generator().manual_seed(0)
    graphs.begin(_choices(["K2V2"] * 3))
    ids = torch.randint(0, 256, (2, 30), generator=generator)
    for _ in range(2):
        with torch.inference_mode(), graphs.instead_of(decoder_layers(model), 0):
            found = final_states(model, input_ids=ids)
    assert graphs.why_eager is None
    with torch.inference_mode():
        assert torch.equal(found, final_states(model, input_ids=ids))


def test_without_room_nothing_is_captured(monkeypatch):
    monkeypatch.setattr(layer_graphs, "_CALLS", 0)
    layers = nn.ModuleList([_Layer() for _ in range(3)])
    graphs = LayerGraphs(room=1 << 60)
    graphs.begin(_choices(["K2V2"] * 3))
    assert _pass(graphs, layers, torch.ones(2)).tolist() == [3, 3]
    assert "are free" in graphs.why_eager


def test_what_policies_read_stays_in_the_tensors_of_the_first_pass():
    graphs = LayerGraphs(room=0)
    first = graphs.begin(_choices(["K2V4", "KV16"], ["K2V2", "KV16"]))
    places = first.places
    assert first.widths == (((2, 4), (2, 4)), ((), ()))
    second = graphs.begin(_choices(["KV16", "K8V8"], ["KV16", "KV16"]))
    assert second.places is places
    assert second.places[1, 0].tolist() == _choices(["KV16", "K8V8"], ["KV16", "KV16"]).places[1, 0].tolist()
    assert second.widths == (((), ()), ((2, 4, 8), (2, 4, 8)))


SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "kivi": QuantScheme.kivi(group_size=4, residual_length=6),
    "sinks": QuantScheme.per_token(group_size=8, residual_length=3, sink_length=5),
}


def _on_gpu(family, dtype) -> LoadedModel:
    # Rows of logits that are not aligned are summed in an order that depends on where they lie.
    loaded = make_loaded(tiny_model(family, vocab_size=264))
    return replace(loaded, model=loaded.model.to("cuda", dtype), device=torch.device("cuda", 0), dtype=dtype)


def _random(scheme, count, *, bits=(8, 4, 2)):
    draw, pairs = random.Random(0), candidate_pairs(bits)
    return [KVPolicy.from_pairs([draw.choice(pairs) for _ in range(3)], scheme=scheme) for _ in range(count)]


def _without_time(scores):
    return [replace(score, seconds=0.0) for score in scores]


def _same_profiles(one, other):
    return [replace(profile, local_seconds=0.0, kl_seconds=0.0) for profile in one] == [
        replace(profile, local_seconds=0.0, kl_seconds=0.0) for profile in other
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_layers_that_wait_for_the_gpu_are_called_and_memory_can_still_be_given_back(monkeypatch):
    loaded = _on_gpu("llama", torch.bfloat16)
    mlp = loaded.model.model.layers[1].mlp
    own = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: (x.sum().item(), own(x))[1])
    scheme = SCHEMES["kivi"]
    policies = _random(scheme, 4)
    captured = Session(loaded, make_spec(scheme))
    expected = _without_time(captured.score_many(policies))
    for _ in range(4):
        assert _without_time(captured.score_many(policies)) == expected
    assert "synchroniz" in captured.prepared[0].graphs.why_eager
    torch.cuda.empty_cache()
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_score_does_not_depend_on_its_place_among_rows_that_are_not_aligned(dtype):
    scheme = SCHEMES["per-token"]
    loaded = make_loaded(tiny_model("llama", vocab_size=261))
    loaded = replace(loaded, model=loaded.model.to("cuda", dtype), device=torch.device("cuda", 0), dtype=dtype)
    captured = Session(loaded, make_spec(scheme))
    policies = _random(scheme, 7)
    expected = _without_time(captured.score_many(policies))
    assert _without_time(captured.score_many(policies[::-1])) == expected[::-1]
    assert _without_time(captured.score_many(policies[3:4])) == expected[3:4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gemma2", "phi", "gpt_neox"])
def test_captured_layers_give_the_bits_of_called_ones(monkeypatch, family, scheme, dtype):
    spec, loaded = make_spec(scheme), _on_gpu(family, dtype)
    plan = session.plan_memory
    captured = Session(loaded, spec)
    monkeypatch.setattr(session, "plan_memory", lambda *args: replace(plan(*args), graph_batches=0))
    called = Session(loaded, spec)
    assert called.prepared[0].graphs is None
    assert captured.together == called.together > 8
    policies = _random(scheme, 12)
    expected = _without_time(called.score_many(policies))
    for _ in range(6):
        assert _without_time(captured.score_many(policies)) == expected
    graphs = captured.prepared[0].graphs
    assert graphs.why_eager is None
    assert graphs.captured == 3
    # Alone, in other company, in another place, and with widths that were not there before.
    assert _without_time(captured.score_many(policies[5:6])) == expected[5:6]
    more = _random(scheme, 5, bits=(16, 3, 2))
    mixed = _without_time(captured.score_many([*more, *policies[::-1]]))
    assert mixed == _without_time(called.score_many([*more, *policies[::-1]]))
    assert mixed[5:] == expected[::-1]
    pairs = candidate_pairs((8, 4, 2))
    for layer in (0, 1, 2, 1, 0, 1, 0):
        assert _same_profiles(profile_layer(captured, layer, pairs), profile_layer(called, layer, pairs))
    assert graphs.captured >= 4
