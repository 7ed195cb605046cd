import pytest

from kvtuner_core.domain.runs import Progress
from kvtuner_core.jobs.pace import Pace


def pace(*steps, start=0.0, stage="search", total=100, together=1):
    measured = Pace()
    measured.start(start)
    for now, done, reused in steps:
        progress = Progress(stage=stage, done=done, total=total, reused=reused, together=together)
        measured.record(progress, now=now)
    return measured


def test_nothing_is_promised_before_two_units_are_known():
    assert pace().rate == 0
    assert pace().seconds_left(0) is None
    one = pace((2.0, 1, 0))
    assert one.rate == 0
    assert one.seconds_left(2.0) is None


def test_the_estimate_is_the_median_unit_times_the_units_left():
    measured = pace((30.0, 1, 0), (32.0, 2, 0), (34.0, 3, 0), total=10)
    assert measured.seconds_left(34.0) == pytest.approx(7 * 2.0)
    assert measured.rate == pytest.approx(3 / 34)


def test_the_estimate_counts_down_within_a_unit_and_no_further():
    measured = pace((2.0, 1, 0), (4.0, 2, 0), total=5)
    assert measured.seconds_left(5.0) == pytest.approx(3 * 2.0 - 1.0)
    assert measured.seconds_left(60.0) == pytest.approx(2 * 2.0)


def test_units_from_the_store_are_not_speed():
    measured = pace((0.0, 50, 50), (2.0, 51, 50), (4.0, 52, 50), (4.1, 60, 58), (6.1, 61, 58))
    assert measured.rate == pytest.approx(0.5)
    assert measured.seconds_left(6.1) == pytest.approx(39 * 2.0)


def test_a_message_without_a_unit_counts_for_the_unit_under_way():
    measured = pace((1.0, 0, 0), (2.0, 1, 0), (3.0, 1, 0), (4.0, 2, 0), total=4)
    assert measured.seconds_left(4.0) == pytest.approx(2 * 2.0)


def test_several_units_at_once_share_their_time():
    measured = pace((8.0, 4, 0), total=10)
    assert measured.rate == pytest.approx(0.5)


def test_a_new_stage_starts_afresh():
    measured = pace((2.0, 1, 0), (4.0, 2, 0))
    measured.record(Progress(stage="evaluation", done=0, total=5), now=4.0)
    assert measured.rate == 0
    measured.record(Progress(stage="evaluation", done=2, total=5), now=10.0)
    assert measured.seconds_left(10.0) == pytest.approx(9.0)


def test_an_unknown_total_promises_nothing():
    assert pace((1.0, 1, 0), (2.0, 2, 0), total=0).seconds_left(2.0) is None


def test_units_that_end_in_bursts_share_their_time():
    steps = [(burst + late, done, 0) for burst in (30.0, 32.0, 34.0, 36.0) for late, done in ((0.0, 0), (0.01, 1))]
    steps = [(now, number + 1, 0) for number, (now, _, _) in enumerate(steps)]
    assert pace(*steps[:2], total=20, together=2).seconds_left(30.01) is None
    measured = pace(*steps, total=20, together=2)
    # Two units every two seconds, twelve left.
    assert measured.seconds_left(36.01) == pytest.approx(12.0, abs=0.1)
    assert pace(*steps, total=20).seconds_left(36.01) < 1.0, "Taken for one after the other, half of them took no time."


def test_progresses_that_were_fetched_together_share_the_time_before_them():
    fetched = [(5.0 * second + offset, 5 * second + place, 0) for second in (1, 2) for place, offset in
               enumerate((0.0, 1e-5, 2e-5, 3e-5, 4e-5), start=-4)]  # fmt: skip
    measured = pace(*fetched, total=100)
    assert measured.seconds_left(10.0) == pytest.approx(90 * 1.0, rel=0.02)
    assert measured.rate == pytest.approx(1.0, rel=0.02)
