"""Errors over the layers."""

import json
from dataclasses import replace

from kvtuner_core.figures import lines_figure, lines_info
from tests.fakes.studies import sweep_result
from tests.figures.builders import axis_titles, trace

SWEEP = sweep_result(layers=6)


def test_a_line_per_pair_and_a_row_per_layer():
    info = lines_info(SWEEP, "output_error")
    rows = info.rows()
    assert len(rows) == 6
    assert list(rows[0]) == ["Layer", *(pair.name for pair in info.pairs)]
    figure = lines_figure(info, dark=True)
    assert list(trace(figure, "K2V2").y) == [row["K2V2"] for row in rows]
    assert axis_titles(figure) == ["Layer", "Output error (relative), log scale"]
    json.loads(figure.to_json())


def test_lines_that_share_a_colour_differ_in_dashes():
    figure = lines_figure(lines_info(SWEEP, "kl"))
    assert len({(item.line.color, item.line.dash) for item in figure.data}) == len(figure.data)


def test_zeros_are_left_out_of_a_logarithmic_axis():
    profiles = (replace(SWEEP.profiles[0], kl=0.0), *SWEEP.profiles[1:])
    info = lines_info(replace(SWEEP, profiles=profiles), "kl")
    assert trace(lines_figure(info), SWEEP.profiles[0].pair.name).y[0] is None
