"""The ridge regression against plain linear algebra."""

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from kvtuner_core.tuning import ridge
from kvtuner_core.tuning.ridge import Ridge, one_thread

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


def _threads():
    return [library.num_threads for library in ThreadpoolController().select(internal_api="openblas").lib_controllers]


def test_one_thread_is_left_to_the_matrices_and_the_rest_comes_back():
    with ThreadpoolController().select(internal_api="openblas").limit(limits=2):
        before = _threads()
        with one_thread(), one_thread():
            assert set(_threads()) <= {1}
        assert _threads() == before
        with pytest.raises(np.linalg.LinAlgError), one_thread():
            np.linalg.inv(np.zeros((2, 2)))
        assert _threads() == before


def test_searches_of_one_process_are_limited_one_after_the_other():
    before, entered, found = _threads(), threading.Event(), []

    def second():
        with one_thread():
            entered.set()
            found.extend(_threads())

    thread = threading.Thread(target=second)
    with one_thread():
        thread.start()
        assert not entered.wait(0.1)
    thread.join(10)
    assert entered.is_set()
    assert set(found) <= {1}
    assert _threads() == before


def test_without_openblas_nothing_is_limited(monkeypatch):
    monkeypatch.setattr(ridge, "_openblas", lambda: ThreadpoolController().select(internal_api="none"))
    with one_thread():
        assert Ridge(DESIGN, TARGETS).chosen(RNG.normal(size=(30, 2)), (0.1,)).error > 0
