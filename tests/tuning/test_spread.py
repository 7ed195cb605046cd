import math

import pytest

from kvtuner_core.tuning.front import dominated_share
from kvtuner_core.tuning.spread import spread

POINTS = [(2.0, 1.0), (3.0, 0.3), (4.0, 0.1), (5.0, 0.05), (6.0, 0.001), (3.5, 0.5), (7.0, math.nan)]


def test_each_point_is_the_one_that_adds_most_area():
    known = [(4.5, 0.08)]
    order = spread(POINTS, known, most=10)
    for place, index in enumerate(order):
        before = known + [POINTS[earlier] for earlier in order[:place]]
        gains = [dominated_share([*before, point]) for point in POINTS if not math.isnan(point[1])]
        assert dominated_share([*before, POINTS[index]]) == pytest.approx(max(gains))


def test_what_adds_nothing_is_never_taken():
    order = spread(POINTS, (), most=10)
    assert set(order) == {0, 1, 2, 3, 4}
    assert spread(POINTS, POINTS[:5], most=10) == ()
    assert spread([], (), most=3) == ()
    assert len(spread(POINTS, (), most=2)) == 2
