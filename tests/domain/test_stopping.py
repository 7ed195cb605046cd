import math
from dataclasses import replace

import numpy as np
import pytest

from kvtuner_core.domain.metrics import Interval, Measured
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.stopping import SLACK, PartialScore, prompt_weights, telling
from tests.fakes.measurements import score

BOUNDED = [objective for objective in Objective if objective.bounded]


def partial(losses, *, tokens=(10, 30, 20), prompts=(2, 0), ends=(1, 2), objective=Objective.MEAN_KL):
    return PartialScore(
        objective=objective, prompts=prompts, losses=losses, ends=ends, tokens_per_prompt=tokens, seconds=1.0
    )


def measured(objective, losses, tokens):
    """A score that holds an objective of each prompt."""
    weights = prompt_weights(objective, tokens)
    mean = float(np.average(losses, weights=weights))
    interval = Interval(mean=mean, low=mean, high=mean)
    held = replace(score(), tokens_per_prompt=tokens, kl=interval, kl_per_prompt=losses)
    return replace(held, others=(Measured(objective=objective, interval=interval, per_prompt=losses),))


def test_which_objectives_have_a_bound():
    assert BOUNDED == [Objective.MEAN_KL, Objective.TOP1_DISAGREEMENT, Objective.ANSWER_ERROR]


def test_the_bound_counts_tokens_or_prompts():
    assert partial((0.3, 0.6)).bound == pytest.approx((20 * 0.3 + 10 * 0.6) / 60)
    assert partial((1.0, 0.0), objective=Objective.ANSWER_ERROR).bound == pytest.approx(1 / 3)
    assert partial((0.3, 0.6)).left == 1


@pytest.mark.parametrize("objective", BOUNDED)
def test_whatever_is_left_the_loss_is_no_smaller_than_the_bound(objective):
    rng = np.random.default_rng(5)
    stopped = 0
    for _ in range(300):
        tokens = tuple(int(count) for count in rng.integers(1, 40, 6))
        losses = tuple(float(loss) for loss in rng.lognormal(-2, 2, 6) * rng.integers(0, 2, 6))
        order = tuple(int(index) for index in rng.permutation(6))
        every = partial(
            tuple(losses[i] for i in order), tokens=tokens, prompts=order, ends=(2, 3, 6), objective=objective
        )
        bar = float(rng.lognormal(-3, 2))
        found = every.within(bar)
        whole = measured(objective, losses, tokens)
        assert every.bound == pytest.approx(whole.loss(objective))
        if found is None:
            assert all(
                replace(every, prompts=order[:end], losses=every.losses[:end]).bound <= bar + SLACK for end in (2, 3, 6)
            )
        else:
            stopped += found.left > 0
            assert bar < found.bound <= whole.loss(objective) * (1 + 1e-12)
            assert found.ends == every.ends[: len(found.ends)]
            assert found.within(bar) == found
    assert stopped > 30


def test_an_estimate_takes_the_share_that_is_left_from_another_policy():
    reference = measured(Objective.MEAN_KL, (0.2, 0.5, 0.1), (10, 30, 20))
    seen = partial((0.3, 0.6))
    assert seen.estimate(reference) == pytest.approx(seen.bound * (2 + 15 + 2) / (2 + 2))
    # Of a policy in proportion it is exact.
    assert partial((0.3, 0.6)).estimate(measured(Objective.MEAN_KL, (0.6, 1.1, 0.3), (10, 30, 20))) == pytest.approx(
        (6 + 33 + 6) / 60
    )
    nothing = measured(Objective.MEAN_KL, (0.0, 0.5, 0.0), (10, 30, 20))
    assert seen.estimate(nothing) == pytest.approx((20 * 0.3 + 10 * 0.6) / 30)
    assert partial((math.inf, 0.6)).estimate(reference) == math.inf


def test_prompts_tell_as_much_as_policies_lose_on_them():
    one, other = (measured(Objective.MEAN_KL, losses, (10, 10, 20)) for losses in ((1.0, 1.0, 1.0), (0.0, 3.0, 0.5)))
    full = measured(Objective.MEAN_KL, (0.0, 0.0, 0.0), (10, 10, 20))
    assert telling([one, full, other], Objective.MEAN_KL) == pytest.approx((0.125, 0.5, 0.375))
    assert telling([full], Objective.MEAN_KL) == ()
