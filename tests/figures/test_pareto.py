"""The trade-off chart."""

import json
from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.figures import pareto_figure, pareto_info, summary
from tests.fakes.studies import search_result
from tests.figures.builders import axis_titles, numbers, trace

RESULT = search_result(layers=8, evaluations=60)


def test_every_policy_is_there_once():
    info = pareto_info(RESULT)
    assert len(info.of("front")) == len(RESULT.front)
    assert len(info.of("baseline")) == 6
    assert len(info.of("front")) + len(info.of("candidate")) == len(RESULT.candidates)
    assert len({point.id for point in info.points}) == len(info.points)
    assert len(info.rows()) == len(RESULT.front) + 6
    assert len(info.all_rows()) == len(info.points)


def test_a_row_says_both_prompt_sets_and_the_whole_policy():
    first, row = RESULT.front[0], pareto_info(RESULT).rows()[0]
    assert row["Id"] == f"p{first.order}"
    assert row["KL, evaluation (nats per token)"] == first.evaluation.kl.mean
    assert row["KL, calibration (nats per token)"] == first.calibration.kl.mean
    assert row["Policy"] == summary(first.policy)


@pytest.mark.parametrize("dark", [False, True])
def test_points_that_can_be_picked_carry_their_id_and_interval(dark):
    info = pareto_info(RESULT)
    figure = pareto_figure(info, dark=dark, picked=info.points[1].id)
    front = trace(figure, "front, evaluation, 95%")
    assert [cell[0] for cell in front.customdata] == [f"p{item.order}" for item in RESULT.front]
    kl = RESULT.front[2].evaluation.kl
    assert front.y[2] + front.error_y.array[2] == pytest.approx(kl.high)
    assert front.y[2] - front.error_y.arrayminus[2] == pytest.approx(max(kl.low, info.floor))
    baselines = trace(figure, "uniform policies")
    assert [cell[0] for cell in baselines.customdata] == ["K16V16", "K8V8", "K8V4", "K4V4", "K4V2", "K2V2"]
    ring = trace(figure, "chosen")
    assert (ring.x[0], ring.y[0]) == (front.x[1], front.y[1])
    assert summary(RESULT.front[0].policy).split(" · ")[0] in front.hovertext[0]
    json.loads(figure.to_json())


def test_units_are_named_and_a_kl_of_zero_is_drawn_where_the_title_says():
    info = pareto_info(RESULT)
    figure = pareto_figure(info)
    bits, kl = axis_titles(figure)
    assert "Effective bits" in bits
    assert "nats per token" in kl
    assert f"0 drawn at {info.floor:g}" in kl
    unquantised = trace(figure, "uniform policies").y[0]
    assert unquantised == info.floor
    assert all(value >= info.floor for item in figure.data for value in numbers(item.y))


def test_the_other_prompts_can_be_asked_for():
    info = pareto_info(RESULT, seen="calibration")
    figure = pareto_figure(info)
    front = trace(figure, "front, calibration, 95%")
    assert front.y[0] == RESULT.front[0].calibration.kl.mean


def test_a_front_without_evaluation_shows_calibration():
    plain = replace(RESULT, front=tuple(replace(item, evaluation=None) for item in RESULT.front))
    info = pareto_info(plain)
    assert info.rows()[0]["KL, evaluation (nats per token)"] is None
    front = trace(pareto_figure(info), "front, evaluation, 95%")
    assert front.y[0] == RESULT.front[0].calibration.kl.mean
    assert "calibration prompts" in front.hovertext[0]


def test_broken_numbers_and_empty_results_are_drawn():
    nan = Interval(mean=float("nan"), low=float("nan"), high=float("nan"))
    first = RESULT.baselines[1]
    broken = replace(first, evaluation=replace(first.calibration, kl=nan))
    json.loads(pareto_figure(pareto_info(replace(RESULT, baselines=(broken,)))).to_json())
    empty = replace(RESULT, candidates=(), front=(), baselines=())
    assert pareto_figure(pareto_info(empty)).layout.annotations[0].text == "No candidate yet"


def test_the_range_leaves_the_unquantised_policy_out():
    low, high = pareto_figure(pareto_info(RESULT)).layout.xaxis.range
    assert low < min(item.effective_bits for item in RESULT.front)
    assert 9 < high < 12
