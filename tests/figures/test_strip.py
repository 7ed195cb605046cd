"""Policies as strips."""

import json

import pytest

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.figures import strip_figure, strip_info
from kvtuner_core.figures.style import BITS_COLOURS

SCHEME = QuantScheme.per_token()
NAMES = "K16V8 K8V4 K4V3 K3V2 KV2"
MIXED = KVPolicy.from_pairs((PrecisionPair.parse(name) for name in NAMES.split()), scheme=SCHEME)
UNIFORM = KVPolicy.uniform("K4V2", layers=3, scheme=SCHEME)


def test_the_table_has_a_row_per_layer_and_a_column_per_policy():
    rows = strip_info([("mixed", MIXED), ("uniform", UNIFORM)]).rows()
    assert len(rows) == 5
    assert rows[0] == {"Layer": 0, "mixed": "K16V8", "uniform": "K4V2"}
    assert rows[4] == {"Layer": 4, "mixed": "K2V2"}


def test_equal_names_are_numbered():
    assert [strip.name for strip in strip_info([("a", MIXED), ("a", UNIFORM)]).strips] == ["a", "a (2)"]


@pytest.mark.parametrize("dark", [False, True])
def test_cells_show_their_bits_in_their_colour(dark):
    figure = strip_figure(strip_info([("mixed", MIXED), ("uniform", UNIFORM)]), dark=dark)
    keys, values = figure.data[0], figure.data[1]
    assert list(keys.text) == ["16", "8", "4", "3", "2"]
    assert list(values.text) == ["8", "4", "3", "2", "2"]
    assert list(keys.marker.color) == [BITS_COLOURS[bits] for bits in (16, 8, 4, 3, 2)]
    assert list(figure.layout.yaxis.ticktext) == ["mixed  K", "V", "uniform  K", "V"]
    assert {item.name for item in figure.data if item.name} == {
        "16 bits, not quantised",
        "8 bits",
        "4 bits",
        "3 bits",
        "2 bits",
    }
    json.loads(figure.to_json())


def test_bits_per_head_are_all_shown_and_coloured_by_their_mean():
    heads = LayerPrecision(heads=(PrecisionPair.parse("K8V4"), PrecisionPair.parse("K8V2")))
    figure = strip_figure(strip_info([("heads", KVPolicy(scheme=SCHEME, layers=(heads,)))]))
    assert list(figure.data[1].text) == ["4/2"]
    assert list(figure.data[1].marker.color) == [BITS_COLOURS[3]]


def test_no_policy_is_said():
    assert strip_figure(strip_info([])).layout.annotations[0].text == "No policy chosen"
