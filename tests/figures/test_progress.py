"""A search while it runs."""

import json
import math
from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.figures import hypervolume_figure, progress_figure, progress_info
from kvtuner_core.tuning import hypervolume
from tests.fakes.studies import search_result
from tests.figures.builders import axis_titles, trace

RESULT = search_result(layers=8, evaluations=60)


def test_the_hypervolume_grows_to_the_result():
    info = progress_info(RESULT.candidates)
    assert list(info.hypervolumes) == sorted(info.hypervolumes)
    assert info.hypervolumes[-1] == pytest.approx(RESULT.hypervolume)
    assert info.hypervolumes[19] == pytest.approx(hypervolume(RESULT.candidates[:20]))
    assert sum(info.front) == len(RESULT.front)


def test_baselines_take_no_part():
    assert progress_info((*RESULT.baselines, *RESULT.candidates)) == progress_info(RESULT.candidates)


def test_candidates_are_put_in_order():
    shuffled = progress_info(RESULT.candidates[::-1])
    assert shuffled == progress_info(RESULT.candidates)
    assert [row["Evaluation"] for row in shuffled.rows()] == list(range(1, 61))


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_names_units_and_draws_the_front(dark):
    figure = progress_figure(progress_info(RESULT.candidates), dark=dark)
    assert len(trace(figure, "front so far").x) == len(RESULT.front)
    assert any("nats per token" in title for title in axis_titles(figure))
    json.loads(figure.to_json())


def test_the_hypervolume_is_drawn_over_the_evaluations_and_in_a_table():
    info = progress_info(RESULT.candidates)
    figure = hypervolume_figure(info, dark=True)
    drawn = trace(figure, "hypervolume")
    assert list(drawn.y) == [row["Hypervolume (share)"] for row in info.volume_rows()]
    assert list(drawn.x) == [row["Evaluation"] for row in info.volume_rows()] == list(range(1, 61))
    assert axis_titles(figure) == ["Evaluations", "Hypervolume (share, 0 to 1)"]


def test_nothing_and_broken_scores_are_drawn():
    assert progress_figure(progress_info(())).layout.annotations[0].text == "No candidate yet"
    nan = Interval(mean=math.nan, low=math.nan, high=math.nan)
    first = RESULT.candidates[0]
    broken = replace(first, calibration=replace(first.calibration, kl=nan))
    info = progress_info((broken, *RESULT.candidates[1:5]))
    assert info.hypervolumes[0] == 0.0
    assert not info.front[0]
    json.loads(progress_figure(info).to_json())
