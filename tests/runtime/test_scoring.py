import numpy as np
import pytest

from kvtuner_core.domain.objective import Objective
from kvtuner_core.runtime.divergence import Divergence
from kvtuner_core.runtime.scoring import Observed, policy_score, tail

LENGTHS = (40, 24, 17)


def _observed(seed=0):
    rng = np.random.default_rng(seed)
    prompts = []
    for length in LENGTHS:
        change = rng.normal(0.1, 1.0, length)
        change[-1] = np.nan
        prompts.append(
            Divergence(
                kl=rng.lognormal(-3.0, 1.5, length),
                agrees=rng.random(length) < 0.9,
                nll_change=change,
                right=np.arange(length) < length - (length == 24),
            )
        )
    return Observed(prompts=prompts, seed=3)


@pytest.fixture(scope="module")
def found():
    return policy_score(_observed(), cache_bytes=10, seconds=0.5)


def test_every_objective_is_measured(found):
    assert all(found.measures(objective) for objective in Objective)
    for objective in Objective:
        measured = found.measured(objective)
        assert measured.interval.low <= measured.interval.mean <= measured.interval.high
        assert len(measured.per_prompt) == len(LENGTHS)


def test_the_tail_is_the_smallest_kl_that_95_percent_of_the_tokens_do_not_exceed(found):
    every = np.concatenate([one.kl for one in _observed().prompts])
    bound = found.interval(Objective.P95_KL).mean
    assert (every <= bound).mean() >= 0.95
    assert (every < bound).mean() < 0.95
    assert bound == np.quantile(every, 0.95, method="inverted_cdf")


def test_the_interval_of_the_tail_is_that_of_resampled_prompts(found):
    observed = _observed()
    drawn = np.random.default_rng(observed.seed).integers(0, len(LENGTHS), size=(500, len(LENGTHS)))
    tails = [
        np.quantile(np.concatenate([observed.prompts[index].kl for index in row]), 0.95, method="inverted_cdf")
        for row in drawn
    ]
    low, high = np.quantile(tails, [0.025, 0.975], method="inverted_cdf")
    interval = found.interval(Objective.P95_KL)
    assert (interval.low, interval.high) == (low, high)


@pytest.mark.parametrize("lengths", [(1,), (1, 1), (300, 1, 1), (7, 160, 2, 31), (128,) * 16])
@pytest.mark.parametrize("ties", [False, True])
def test_the_tail_of_any_resample_is_that_of_its_tokens(lengths, ties):
    """Also where one prompt holds most tokens, or nearly all of the largest."""
    rng = np.random.default_rng(len(lengths))
    kls = [rng.lognormal(-3.0, 1.5, length) * 10**index for index, length in enumerate(lengths)]
    prompts = [Divergence(kl=kl.round(2) if ties else kl, agrees=kl > 0, nll_change=kl, right=kl > 0) for kl in kls]
    drawn = np.random.default_rng(5).integers(0, len(lengths), size=(500, len(lengths)))
    tails = [
        np.quantile(np.concatenate([prompts[index].kl for index in row]), 0.95, method="inverted_cdf") for row in drawn
    ]
    interval = tail(Observed(prompts=prompts, seed=5)).interval
    assert (interval.low, interval.high) == tuple(np.quantile(tails, [0.025, 0.975], method="inverted_cdf"))
    assert interval.mean == np.quantile(np.concatenate([one.kl for one in prompts]), 0.95, method="inverted_cdf")


def test_likelihood_and_agreement_are_the_plain_means(found):
    observed = _observed()
    assert found.interval(Objective.NLL_CHANGE).mean == pytest.approx(found.nll_change)
    assert found.interval(Objective.TOP1_DISAGREEMENT).mean == pytest.approx(1 - found.top1_agreement)
    assert found.measured(Objective.TOP1_DISAGREEMENT).per_prompt[1] == pytest.approx(
        1 - observed.prompts[1].agrees.mean()
    )


def test_scores_of_one_seed_share_their_resamples():
    one, other = (policy_score(_observed(), cache_bytes=10, seconds=0.0) for _ in range(2))
    assert one == other


def test_an_answer_is_missed_where_one_of_its_tokens_is(found):
    measured = found.measured(Objective.ANSWER_ERROR)
    assert measured.per_prompt == (0.0, 1.0, 0.0)
    assert measured.interval.mean == pytest.approx(1 / 3), "Prompts count alike, however long."
