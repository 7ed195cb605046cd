"""Error against effect, and their rank correlation."""

import json
from dataclasses import replace

import pytest

from kvtuner_core.figures import correlation_info, effect_figure, effect_info
from tests.fakes.studies import sweep_result
from tests.figures.builders import axis_titles

SWEEP = sweep_result(layers=6)


def test_each_layer_is_a_point_and_a_row():
    info = effect_info(SWEEP)
    rows = info.rows()
    assert len(rows) == 6
    assert rows[2]["KL, sum over pairs (nats per token)"] == pytest.approx(
        sum(profile.kl for profile in SWEEP.profiles if profile.layer == 2)
    )
    figure = effect_figure(info, dark=True)
    assert [cell[0] for cell in figure.data[0].customdata] == list(range(6))
    assert all("Output error" in title or "nats per token" in title for title in axis_titles(figure))
    json.loads(figure.to_json())


def test_the_correlation_is_text_even_where_it_is_undefined():
    assert float(correlation_info(SWEEP)) == pytest.approx(effect_info(SWEEP).correlation.layers, abs=0.01)
    flat = replace(SWEEP, profiles=tuple(replace(profile, kl=0.0) for profile in SWEEP.profiles))
    assert correlation_info(flat) == "n/a"
    json.loads(effect_figure(effect_info(flat)).to_json())


def test_names_that_would_lie_on_another_are_left_out():
    info = effect_info(sweep_result(layers=40))
    twice = replace(info, errors=info.errors * 2, kls=info.kls * 2)
    shown, again = effect_figure(info).data[0].text, effect_figure(twice).data[0].text
    assert 5 <= sum(map(bool, shown)) < 40
    assert list(again) == [*shown, *[""] * 40]
