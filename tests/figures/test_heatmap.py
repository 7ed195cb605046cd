"""The heatmap's numbers, marks and click targets."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from kvtuner_core.figures import heatmap_figure, heatmap_info
from kvtuner_core.figures.metrics import METRICS
from tests.fakes.studies import sweep_result
from tests.figures.builders import axis_titles, trace

SWEEP = sweep_result(layers=6)


def test_the_numbers_are_the_profiles():
    info = heatmap_info(SWEEP, "output_error")
    assert info.pairs[0] == "K8V8"
    assert info.pairs[-1] == "K2V2"
    for profile in SWEEP.profiles:
        assert info.values[info.pairs.index(profile.pair.name)][profile.layer] == profile.output_error
    for layer, kept in enumerate(SWEEP.space.kept):
        assert {pair for row, pair in enumerate(info.pairs) if info.kept[row][layer]} == {pair.name for pair in kept}
    for number, group in enumerate(SWEEP.space.groups):
        assert {info.groups[layer] for layer in group.layers} == {number}


def test_the_table_has_a_row_per_cell():
    rows = heatmap_info(SWEEP, "kl").rows()
    assert len(rows) == 6 * 9
    assert list(rows[0]) == ["Layer", "Pair", "KL (nats per token)", "Kept", "Group"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_names_units_and_every_cell_can_be_clicked(metric, dark):
    info = heatmap_info(SWEEP, metric)
    figure = heatmap_figure(info, dark=dark)
    assert {info.label, "Layer"} <= set(axis_titles(figure))
    targets = next(item for item in figure.data if item.customdata is not None)
    assert {tuple(cell) for cell in targets.customdata} == {(layer, pair) for layer in range(6) for pair in info.pairs}
    assert targets.marker.opacity == targets.unselected.marker.opacity == targets.selected.marker.opacity == 0
    assert len(trace(figure, "kept by pruning").x) == sum(map(len, SWEEP.space.kept))
    json.loads(figure.to_json())


def test_the_colour_bar_shows_real_numbers():
    bar = heatmap_figure(heatmap_info(SWEEP, "output_error")).data[0].colorbar
    assert [math.log10(float(text)) for text in bar.ticktext] == pytest.approx(list(bar.tickvals))


def test_zero_gets_the_coldest_colour_and_no_number_a_hole():
    profiles = list(SWEEP.profiles)
    profiles[0] = replace(profiles[0], kl=0.0)
    profiles[1] = replace(profiles[1], kl=math.nan)
    info = heatmap_info(replace(SWEEP, profiles=tuple(profiles)), "kl")
    cells = heatmap_figure(info).data[0].z
    row = info.pairs.index(profiles[0].pair.name)
    assert cells[row][0] == pytest.approx(math.log10(info.floor)) == min(v for line in cells for v in line if v)
    assert cells[info.pairs.index(profiles[1].pair.name)][0] is None
    assert "not a number" in next(item for item in heatmap_figure(info).data if item.customdata is not None).text[6]


def test_a_metric_that_is_zero_everywhere_is_drawn():
    profiles = tuple(replace(profile, kl=0.0) for profile in SWEEP.profiles)
    json.loads(heatmap_figure(heatmap_info(replace(SWEEP, profiles=profiles), "kl")).to_json())


def test_numbers_of_neighbouring_groups_stand_a_line_apart_where_cells_are_narrow():
    few = trace(heatmap_figure(heatmap_info(SWEEP, "kl")), "groups")
    assert set(few.y) == {0}
    many = heatmap_info(sweep_result(layers=30), "kl")
    numbers = trace(heatmap_figure(many), "groups")
    assert list(numbers.text) == [str(group) for group in many.groups]
    assert all(one != other for one, other in pairwise(numbers.y))
    crowded = trace(heatmap_figure(heatmap_info(sweep_result(layers=64), "kl")), "groups")
    assert set(crowded.text) == {""}
