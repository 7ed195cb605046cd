"""The ridge regression against plain linear algebra."""

import numpy as np
import pytest

from kvtuner_core.tuning.ridge import Ridge

RNG = np.random.default_rng(4)
DESIGN, TARGETS = RNG.normal(size=(30, 45)), RNG.normal(size=30)


def _plain(design, targets, noise):
    return design.T @ np.linalg.solve(design @ design.T + noise**2 * np.eye(len(targets)), targets)


def _left_out(design, targets, noise):
    """Root mean square error of every evaluation predicted by a regression on the others."""
    errors = []
    for row in range(len(targets)):
        others = np.arange(len(targets)) != row
        errors.append(targets[row] - design[row] @ _plain(design[others], targets[others], noise))
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize("more", [0, 1, 7])
@pytest.mark.parametrize("noise", [0.02, 0.4])
def test_it_is_the_plain_solution_with_more_columns(more, noise):
    extra = RNG.normal(size=(30, more))
    fit = Ridge(DESIGN, TARGETS).chosen(extra, (noise,))
    whole = np.concatenate([DESIGN, extra], axis=1)
    assert fit.mean() == pytest.approx(_plain(whole, TARGETS, noise), abs=1e-8)
    assert fit.error == pytest.approx(_left_out(whole, TARGETS, noise), rel=1e-7)


def test_the_noise_that_predicts_best_is_chosen():
    truth = DESIGN @ RNG.normal(size=45)
    rough = truth + RNG.normal(size=30)
    noises = (0.02, 0.4, 3.0)
    fit = Ridge(DESIGN[:, :8], rough).chosen(np.zeros((30, 0)), noises)
    errors = {noise: _left_out(DESIGN[:, :8], rough, noise) for noise in noises}
    assert fit.noise == min(errors, key=errors.get)


def test_draws_are_around_the_mean_and_as_wide_as_the_posterior():
    fit = Ridge(DESIGN, TARGETS).chosen(np.zeros((30, 0)), (0.3,))
    rng = np.random.default_rng(0)
    draws = np.array([fit.drawn(rng) for _ in range(4000)])
    covariance = np.eye(45) - DESIGN.T @ np.linalg.solve(DESIGN @ DESIGN.T + 0.09 * np.eye(30), DESIGN)
    assert draws.mean(axis=0) == pytest.approx(fit.mean(), abs=0.08)
    assert draws.var(axis=0) == pytest.approx(np.diag(covariance), abs=0.08)
