import numpy as np
import pytest
import torch
from transformers import DynamicCache

from kernels.quantize.op import simulate
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair, candidate_pairs
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.profiling import profile_layer
from kvtuner_core.runtime.session import Session
from tests.fakes.models import tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec


def _session(family="llama", scheme=None, **fields):
    return Session(make_loaded(tiny_model(family)), make_spec(scheme or QuantScheme.per_token(), **fields))


def _norm(x, dims):
    return torch.linalg.vector_norm(x, dim=dims)


def _by_hand(session, prompt, layer, bits):
    """Errors of a Llama layer, per-token scheme without a window, one decode step after another."""
    model = session.loaded.model
    queries = []
    attention = model.model.layers[layer].self_attn
    hook = attention.q_proj.register_forward_hook(lambda _m, _i, output: queries.append(output))
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.tensor([[*prompt.prefix, *prompt.suffix]]), past_key_values=cache)
    hook.remove()
    exact = {"key": cache.layers[layer].keys, "value": cache.layers[layer].values}
    moved = {
        side: simulate(x.float(), bits=bits, granularity="token", group_size=16).double() for side, x in exact.items()
    }
    total = len(prompt.prefix) + len(prompt.suffix)
    query = queries[0].view(1, total, 4, 16).transpose(1, 2)
    cos, sin = model.model.rotary_emb(query, torch.arange(total)[None])
    half = torch.cat([-query[..., 8:], query[..., :8]], dim=-1)
    query = query * cos + half * sin
    scores, outputs = [], []
    for position in range(len(prompt.prefix), total):
        found = []
        for source in (exact, moved):
            keys = torch.cat([source["key"][:, :, :position], exact["key"][:, :, position : position + 1]], dim=2)
            values = torch.cat([source["value"][:, :, :position], exact["value"][:, :, position : position + 1]], dim=2)
            keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
            weights = (query[:, :, position : position + 1] @ keys.mT / 4).softmax(-1)
            found.append((weights, weights @ values))
        (full, output), (quantised, moved_output) = found
        scores.append((full - quantised).abs().sum(-1).mean().item())
        outputs.append((_norm(output - moved_output, -1) / _norm(output, -1)).mean().item())
    read = {side: slice(0, total - 1) for side in exact}
    sides = {
        side: (
            _norm(moved[side][:, :, read[side]] - exact[side][:, :, read[side]], (-2, -1))
            / _norm(exact[side][:, :, read[side]], (-2, -1))
        )
        .mean()
        .item()
        for side in exact
    }
    return sides["key"], sides["value"], np.mean(scores), np.mean(outputs)


def test_errors_are_those_of_decode_steps_computed_by_hand():
    session = _session()
    (profile,) = profile_layer(session, 1, [PrecisionPair.parse("K3V3")])
    expected = np.mean([_by_hand(session, prompt, 1, 3) for prompt in session.prompts], axis=0)
    found = (profile.key_error, profile.value_error, profile.score_error, profile.output_error)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("scheme", [QuantScheme.per_token(), QuantScheme.kivi(group_size=4, residual_length=6)])
def test_fewer_bits_are_never_better(family, scheme):
    profiles = profile_layer(_session(family, scheme), 1, candidate_pairs((8, 4, 2)))
    by_pair = {profile.pair.name: profile for profile in profiles}
    assert list(by_pair) == ["K8V8", "K8V4", "K8V2", "K4V8", "K4V4", "K4V2", "K2V8", "K2V4", "K2V2"]
    for name in ("key_error", "value_error", "score_error", "output_error", "kl"):
        values = [getattr(by_pair[pair], name) for pair in ("K8V8", "K4V4", "K2V2")]
        assert 0 < values[0] < values[1] < values[2], name
    assert by_pair["K8V2"].key_error == by_pair["K8V8"].key_error
    assert by_pair["K8V2"].score_error == by_pair["K8V8"].score_error
    assert by_pair["K2V8"].value_error == by_pair["K8V8"].value_error


def test_kl_is_the_score_of_the_policy_that_quantises_this_layer_alone():
    session = _session(scheme=QuantScheme.kivi(group_size=4, residual_length=2))
    pairs = candidate_pairs((16, 2))
    for profile in profile_layer(session, 2, pairs):
        layers = (LayerPrecision(), LayerPrecision(), LayerPrecision(pair=profile.pair))
        score = session.score(KVPolicy(scheme=session.scheme, layers=layers))
        assert profile.kl == pytest.approx(score.kl.mean, rel=1e-6)


def test_the_full_pair_has_no_error():
    (profile,) = profile_layer(_session(), 0, [PrecisionPair.parse("KV16")])
    assert (profile.key_error, profile.value_error, profile.score_error, profile.output_error, profile.kl) == (0,) * 5


def test_a_window_that_holds_everything_leaves_no_error():
    session = _session(scheme=QuantScheme.per_token(residual_length=200))
    (profile,) = profile_layer(session, 0, [PrecisionPair.parse("KV2")])
    assert (profile.key_error, profile.value_error) == (0, 0)
    assert max(profile.score_error, profile.output_error, profile.kl) < 1e-6


def test_prompts_of_different_lengths_count_alike():
    profiles = [
        profile_layer(_session(texts=texts, suffix=9), 1, [PrecisionPair.parse("KV2")])[0]
        for texts in ((TEXTS[0], TEXTS[1][:40]), TEXTS[:1], (TEXTS[1][:40],))
    ]
    for name in ("key_error", "score_error", "output_error", "kl"):
        both, *each = (getattr(profile, name) for profile in profiles)
        assert both == pytest.approx(np.mean(each), rel=1e-5)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ModelError, match="from 0 to 2"):
        profile_layer(_session(), 3, [PrecisionPair.parse("KV2")])
