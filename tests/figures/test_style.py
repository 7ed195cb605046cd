"""Axes, ticks and layout."""

import json
import math

import pytest

from kvtuner_core.figures import CHART_CONFIG
from kvtuner_core.figures.style import axis, decade_ticks, empty_figure, floored, layout, log_floor, short


def test_charts_neither_upload_nor_advertise():
    assert dict(CHART_CONFIG) == {"showSendToCloud": False, "displaylogo": False}


@pytest.mark.parametrize("dark", [False, True])
def test_the_ground_is_the_pages(dark):
    made = layout(dark=dark, height=300)
    assert made["paper_bgcolor"] == made["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert made["template"] == ("plotly_dark" if dark else "plotly_white")


def test_the_floor_is_the_decade_below_the_smallest_positive_value():
    assert log_floor([0.0, 3e-4, 0.2, math.nan, math.inf]) == pytest.approx(1e-4)
    assert log_floor([0.0, math.nan]) == 1e-6
    assert floored(0.0, 1e-4) == 1e-4
    assert floored(0.5, 1e-4) == 0.5
    assert floored(math.nan, 1e-4) is None


@pytest.mark.parametrize(("low", "high"), [(0.013, 0.9), (1e-7, 2.0), (0.2, 0.2), (0.0031, 0.0034)])
def test_ticks_are_round_and_inside(low, high):
    ticks = decade_ticks(low, high)
    assert ticks
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)


def test_an_axis_names_its_unit_and_a_number_is_short():
    assert axis("KL (nats per token)", log=True)["type"] == "log"
    assert short(0.0123456) == "0.0123"
    assert short(math.nan) == "not a number"


def test_an_empty_figure_says_why():
    figure = empty_figure("Nothing yet", dark=True, height=200)
    assert figure.layout.annotations[0].text == "Nothing yet"
    json.loads(figure.to_json())
