import pytest
import torch

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair, candidate_pairs
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime import bank, gradients
from kvtuner_core.runtime.gradients import error_scores
from kvtuner_core.runtime.profiling import profile_layer
from kvtuner_core.runtime.session import Session
from tests.fakes.models import FAMILIES, tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec

KIVI = QuantScheme.kivi(group_size=4, residual_length=6)
PER_TOKEN = QuantScheme.per_token()


def _session(family="llama", scheme=PER_TOKEN, **fields):
    return Session(make_loaded(tiny_model(family)), make_spec(scheme, **fields))


def _alone(session, layer, pair):
    """The policy that quantises one layer."""
    layers = tuple(LayerPrecision(pair=pair if index == layer else FULL_PAIR) for index in range(len(session.layers)))
    return KVPolicy(scheme=session.scheme, layers=layers)


@pytest.fixture
def small_errors(monkeypatch):
    """Quantised slots that are a thousand times closer to the exact ones, so that the next order does not matter."""
    simulated = bank.simulated

    def shrunk(x, *rest):
        return x + 1e-3 * (simulated(x, *rest) - x)

    monkeypatch.setattr(bank, "simulated", shrunk)


@pytest.mark.usefixtures("small_errors")
@pytest.mark.parametrize("scheme", [PER_TOKEN, KIVI], ids=["per-token", "kivi"])
@pytest.mark.parametrize("family", FAMILIES)
def test_small_errors_change_likelihood_and_kl_as_gradients_say(family, scheme, monkeypatch):
    monkeypatch.setattr(gradients, "ENOUGH_PROBES", 12)
    session = _session(family, scheme, texts=TEXTS[:1])
    pair = PrecisionPair.parse("KV4")
    estimated, measured = 0.0, 0.0
    for found in error_scores(session, [pair]).pairs:
        score = session.score(_alone(session, found.layer, pair))
        assert found.gradient_error == pytest.approx(abs(score.nll_change), rel=0.03, abs=3e-7)
        estimated, measured = estimated + found.fisher_error, measured + score.kl.mean
    # One text and a few heads leave errors that are correlated by chance; the next tests are exact.
    assert measured / 4 < estimated < 4 * measured


@pytest.mark.usefixtures("small_errors")
def test_where_one_token_is_quantised_the_fisher_error_is_exact_in_the_mean(monkeypatch):
    monkeypatch.setattr(gradients, "ENOUGH_PROBES", 400)
    scheme = QuantScheme.per_token(residual_length=52)
    session = _session("qwen2", scheme, texts=TEXTS[:1], prefix=53, suffix=2)
    pair = PrecisionPair(key_bits=4, value_bits=16)
    for found in error_scores(session, [pair]).pairs:
        (measured,) = profile_layer(session, found.layer, [pair])
        assert found.fisher_error == pytest.approx(measured.kl, rel=0.25)


def test_probes_have_the_fisher_information_as_their_covariance():
    logits = torch.tensor([[[2.0, 0.5, -1.0, 0.0]]], dtype=torch.float64)
    probes = range(4000)
    vectors = torch.cat([gradients._fisher_vectors(logits, [7], seed=1, probe=probe) for probe in probes]).squeeze(1)
    p = logits[0, 0].softmax(-1)
    torch.testing.assert_close(vectors.mT @ vectors / len(probes), p.diag() - torch.outer(p, p), rtol=0, atol=0.02)


def test_sides_add_up_and_what_is_not_quantised_costs_nothing():
    session = _session()
    names = ("K4V16", "K16V4", "K4V4", "KV16")
    scores = error_scores(session, [PrecisionPair.parse(name) for name in names])
    for layer in range(3):
        keys, values, both, none = (found for found in scores.pairs if found.layer == layer)
        assert both.fisher_error == pytest.approx(keys.fisher_error + values.fisher_error)
        assert both.gradient_error <= keys.gradient_error + values.gradient_error + 1e-12
        assert (none.fisher_error, none.gradient_error) == (0.0, 0.0)
        assert min(keys.fisher_error, values.fisher_error, keys.gradient_error, values.gradient_error) > 0


def test_a_pair_scores_the_same_beside_others_and_prompts_one_at_a_time(monkeypatch):
    session = _session(scheme=KIVI)
    alone = error_scores(session, [PrecisionPair.parse("K4V2")], seed=3)
    session.score(KVPolicy.uniform("K2V2", layers=3, scheme=KIVI))
    beside = error_scores(session, candidate_pairs((2, 4)), seed=3)
    assert [found for found in beside.pairs if found.pair.name == "K4V2"] == list(alone.pairs)
    monkeypatch.setattr(gradients, "_MEMORY_SHARE", 0.0)
    for one, other in zip(error_scores(session, [PrecisionPair.parse("K4V2")], seed=3).pairs, alone.pairs, strict=True):
        assert one.fisher_error == pytest.approx(other.fisher_error, rel=1e-9)
        assert one.gradient_error == pytest.approx(other.gradient_error, rel=1e-9)
    assert error_scores(session, [PrecisionPair.parse("K4V2")], seed=4).pairs != alone.pairs


def test_a_window_that_holds_everything_leaves_nothing_to_score():
    session = _session(scheme=QuantScheme.per_token(residual_length=200))
    for found in error_scores(session, [PrecisionPair.parse("KV2")]).pairs:
        assert (found.fisher_error, found.gradient_error) == (0.0, 0.0)


def test_the_model_is_left_as_it_was():
    session = _session("gemma3")
    before = session.loaded.model.config._attn_implementation
    error_scores(session, [PrecisionPair.parse("KV4")])
    assert session.loaded.model.config._attn_implementation == before
    assert all(parameter.grad is None for parameter in session.loaded.model.parameters())
    session.score(KVPolicy.uniform("KV4", layers=3, scheme=PER_TOKEN))
