"""Memory bars."""

import json
from dataclasses import dataclass

import pytest

from kvtuner_core.figures import memory_figure, memory_info
from kvtuner_core.figures.style import BLUE, RED
from tests.figures.builders import axis_titles


@dataclass(frozen=True)
class Cost:
    name: str
    effective_bits: float
    bytes: int
    bytes_per_token: float = 1.0


COSTS = (Cost("K16V16", 16.0, 4 * 2**30), Cost("K4V4", 4.25, 2**30))


def test_sizes_are_in_gib_and_small_ones_in_mib():
    rows = memory_info(COSTS, free_bytes=2 * 2**30).rows()
    assert rows[0]["Cache (GiB)"] == 4.0
    assert [row["Fits in free memory"] for row in rows] == [False, True]
    small = memory_info((Cost("K4V4", 4.25, 3 * 2**20),))
    assert small.rows()[0]["Cache (MiB)"] == 3.0
    assert "Fits in free memory" not in small.rows()[0]


@pytest.mark.parametrize("dark", [False, True])
def test_what_does_not_fit_is_marked(dark):
    figure = memory_figure(memory_info(COSTS, free_bytes=2 * 2**30), dark=dark)
    assert list(figure.data[0].marker.color) == [RED, BLUE]
    assert "Cache size (GiB)" in axis_titles(figure)
    assert figure.layout.shapes[0].x0 == 2.0
    assert figure.layout.annotations[0].text == "free memory 2 GiB"
    json.loads(figure.to_json())


def test_free_memory_far_away_is_written_not_drawn():
    figure = memory_figure(memory_info(COSTS, free_bytes=100 * 2**30))
    assert not figure.layout.shapes
    assert "100 GiB" in figure.layout.annotations[0].text


def test_nothing_is_said():
    assert memory_figure(memory_info(())).layout.annotations[0].text == "Nothing to compare"
