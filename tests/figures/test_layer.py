"""One layer's detail."""

import json
from dataclasses import replace

import pytest

from kvtuner_core.errors import InputError
from kvtuner_core.figures import layer_figure, layer_info
from tests.fakes.studies import sweep_result
from tests.figures.builders import axis_titles

SWEEP = sweep_result(layers=6)


def test_the_table_has_every_metric_of_every_pair():
    rows = layer_info(SWEEP, 3).rows()
    assert [row["Pair"] for row in rows if row["Kept"]] == [pair.name for pair in SWEEP.space.kept[3]]
    assert len(rows) == 9
    assert {"Output error (relative)", "KL (nats per token)", "Mean bits"} <= set(rows[0])


def test_kept_and_pruned_pairs_are_told_apart_on_both_panels():
    figure = layer_figure(layer_info(SWEEP, 3), dark=True)
    assert len(figure.data) == 4
    kept = [item for item in figure.data if item.name == "kept"]
    assert all(list(item.text) == [pair.name for pair in SWEEP.space.kept[3]] for item in kept)
    assert {"Output error (relative)", "KL (nats per token)"} <= set(axis_titles(figure))
    json.loads(figure.to_json())


def test_an_error_of_zero_is_said_in_the_title():
    zero = tuple(replace(profile, output_error=0.0) if i == 0 else profile for i, profile in enumerate(SWEEP.profiles))
    titles = axis_titles(layer_figure(layer_info(replace(SWEEP, profiles=zero), 0)))
    assert any("0 drawn at" in title for title in titles)


@pytest.mark.parametrize("layer", [-1, 6])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(InputError, match="from 0 to 5"):
        layer_info(SWEEP, layer)


def test_names_of_pairs_of_equal_bits_stand_apart():
    figure = layer_figure(layer_info(SWEEP, 3))
    for axis in ("y", "y2"):
        panel = [item for item in figure.data if item.yaxis == axis]
        seen = [(bits, place) for item in panel for bits, place in zip(item.x, item.textposition, strict=True)]
        assert len(set(seen)) == len(seen) == 9
