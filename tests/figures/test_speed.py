"""Measured speed-ups."""

import json

import pytest

from kvtuner_core.domain.speed import SpeedOrigin, SpeedRow, SpeedTable
from kvtuner_core.figures import speed_figure, speed_info, speed_share_figure
from tests.figures.builders import axis_titles

ORIGIN = SpeedOrigin(device="GPU", versions=(), date="2026-11-24", command="x", copy_gb_per_s=1.0)


def _row(pair, batch, speedup):
    return SpeedRow(
        pair=pair, scheme="per-token", batch=batch, length=4096, ms=1.0, full_ms=speedup, speedup=speedup, ceiling=4.0
    )


TABLE = SpeedTable(
    origin=ORIGIN, rows=(_row("K8V8", 8, 1.5), _row("K2V2", 8, 3.0), _row("K8V8", 1, 1.0), _row("K2V2", 1, 1.2))
)


@pytest.mark.parametrize("dark", [False, True])
def test_bars_of_each_pair_over_the_shapes_and_the_same_numbers_in_the_table(dark):
    info = speed_info(TABLE, "per-token", what="a decode step")
    rows = info.rows()
    assert [(row["Batch x tokens"], row["Pair"]) for row in rows] == [
        ("1 x 4k", "K8V8"), ("1 x 4k", "K2V2"), ("8 x 4k", "K8V8"), ("8 x 4k", "K2V2"),
    ]  # fmt: skip
    assert rows[3]["Share of that (%)"] == 75.0
    assert rows[3]["A decode step (ms)"] == 1.0
    figure, other = speed_figure(info, dark=dark), speed_share_figure(info, dark=dark)
    times, shares = [next(bar for bar in one.data if bar.name == "K2V2") for one in (figure, other)]
    assert list(times.y) == [row["Times faster than bf16"] for row in rows if row["Pair"] == "K2V2"]
    assert list(shares.y) == [row["Share of that (%)"] for row in rows if row["Pair"] == "K2V2"]
    assert len({bar.marker.color for bar in figure.data}) == 2
    assert "Times faster than bf16" in axis_titles(figure)
    assert "Share of what the bytes allow (%)" in axis_titles(other)
    for one in (figure, other):
        json.loads(one.to_json())


def test_nothing_is_said():
    for draw in (speed_figure, speed_share_figure):
        assert draw(speed_info(TABLE, "kivi", what="x")).layout.annotations[0].text == "Nothing was measured"
