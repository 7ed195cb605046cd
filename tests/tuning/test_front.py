"""Front and hypervolume by cases worked out by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtuner_core.domain.study import CandidateOrigin
from kvtuner_core.tuning import hypervolume, pareto_front
from kvtuner_core.tuning.front import dominated_share
from tests.tuning.builders import scored


def _points(candidates):
    return [(item.effective_bits, item.calibration.kl.mean) for item in candidates]


def test_only_searched_and_not_dominated_candidates_are_on_the_front():
    items = [
        scored(8.0, 0.001),
        scored(4.0, 0.1),
        scored(5.0, 0.1),
        scored(4.0, 0.2),
        scored(3.0, math.nan),
        scored(2.0, math.inf),
        scored(1.0, 0.0, origin=CandidateOrigin.BASELINE),
    ]
    assert _points(pareto_front(items)) == [(4.0, 0.1), (8.0, 0.001)]


def test_of_equal_candidates_the_first_evaluated_stays():
    front = pareto_front([scored(4.0, 0.1, order=7), scored(4.0, 0.1, order=3)])
    assert [item.order for item in front] == [3]


def test_nothing_dominates_nothing():
    assert pareto_front([]) == ()
    assert hypervolume([]) == 0.0


def test_shares_worked_out_by_hand():
    # The axis of KL spans the seven decades from 1e-6 to 10 nats.
    assert dominated_share([(0.0, 0.0)]) == pytest.approx(1.0)
    assert dominated_share([(8.0, 0.0)]) == pytest.approx(0.5)
    assert dominated_share([(0.0, 0.01)]) == pytest.approx(3 / 7, abs=1e-4)
    # (4, 0.1) gives 12 x 2, (8, 0.001) adds 8 x 2, of 16 x 7.
    assert dominated_share([(4.0, 0.1), (8.0, 0.001)]) == pytest.approx((24 + 16) / 112, abs=1e-3)
    assert dominated_share([(16.0, 0.0), (4.0, 10.0), (math.nan, 0.1), (4.0, math.nan)]) == 0.0


def test_baselines_do_not_count():
    assert hypervolume([scored(4.0, 0.1, origin=CandidateOrigin.BASELINE)]) == 0.0


_POINT = st.tuples(st.floats(0, 20), st.floats(0, 20))


@given(st.lists(_POINT, max_size=20), _POINT)
def test_more_candidates_never_dominate_less(points, extra):
    items = [scored(*point) for point in points]
    before, after = hypervolume(items), hypervolume([*items, scored(*extra)])
    assert 0.0 <= before <= after + 1e-12 <= 1.0 + 1e-9
    front = _points(pareto_front(items))
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(front))
    assert hypervolume(pareto_front(items)) == pytest.approx(before)
