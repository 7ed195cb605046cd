"""Measured against predicted KL."""

import json
from dataclasses import replace

import pytest

from kvtuner_core.figures import prediction_figure, prediction_info
from kvtuner_core.tuning.surrogate import Surrogate
from tests.fakes.studies import search_result
from tests.figures.builders import axis_titles, trace

RESULT = search_result(layers=8, evaluations=60)


def test_every_policy_has_its_prediction():
    info = prediction_info(RESULT)
    model = Surrogate.additive(RESULT.sweep.profiles)
    assert [point.id for point in info.points if not point.baseline] == [f"p{order}" for order in range(60)]
    assert {point.id for point in info.points if point.baseline} == {"K8V8", "K8V4", "K4V4", "K4V2", "K2V2"}
    assert info.points[7].predicted == pytest.approx(model.predict(RESULT.candidates[7].policy))
    assert info.rows()[7]["Measured / predicted"] == pytest.approx(info.points[7].measured / info.points[7].predicted)
    assert f"Rank correlation {info.rank_correlation:.3f}" in info.verdict


def test_the_figure_has_units_and_every_point():
    info = prediction_info(RESULT)
    figure = prediction_figure(info)
    json.loads(figure.to_json())
    assert len(trace(figure, "searched policies").x) == 60
    assert len(trace(figure, "uniform policies").x) == 5
    assert all("nats per token" in title for title in axis_titles(figure))


def test_too_little_is_said_in_words():
    nothing = prediction_info(replace(RESULT, candidates=(), baselines=()))
    assert "Too few" in nothing.verdict
    assert prediction_figure(nothing).layout.annotations[0].text.startswith("No policy")
