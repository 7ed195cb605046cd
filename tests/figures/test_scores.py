from dataclasses import replace

from kvtuner_core import figures
from kvtuner_core.domain.scores import ScoreName
from tests.fakes.studies import picked, sweep_result

SWEPT = sweep_result(layers=6, scored=True)


def test_lines_and_their_table_hold_every_score_and_the_norms_apart():
    info = figures.scores_info(SWEPT)
    assert info.names == tuple(ScoreName)
    rows = info.rows()
    assert len(rows) == 6
    assert rows[2]["Gradient norm, W_k"] == SWEPT.scores.weights.layers[2].key_gradient
    assert rows[2]["Weight norm, W_v"] == SWEPT.scores.weights.layers[2].value_weight
    figure = figures.scores_figure(info, dark=True)
    assert figure.data[0].name == "Isolated KL"
    assert list(figure.data[1].y) == [row["Fisher error, share"] for row in rows]
    assert "log" in figure.layout.yaxis.title.text


def test_the_matrix_is_symmetric_and_written_out():
    info = figures.scores_info(SWEPT)
    figure = figures.correlations_figure(info)
    numbers = figure.data[0].z
    assert all(numbers[i][i] == 1.0 for i in range(6))
    assert numbers[0][1] == numbers[1][0] == info.correlation_rows()[0]["Fisher error"]
    assert figure.data[0].text[0][1] == f"{numbers[0][1]:.2f}"


def test_rows_of_picks_or_of_costs_alone():
    costs = figures.scores_info(SWEPT).pick_rows()
    assert [row["Score"] for row in costs][:2] == ["Isolated KL", "Fisher error"]
    assert costs[1]["Cost (s)"] == 1.9
    rows = figures.scores_info(replace(SWEPT, scores=picked(SWEPT))).pick_rows()
    assert len(rows) == 6
    assert all(row["Bits at 4.50"] <= 4.5 for row in rows)
    assert all(row["KL at 4.50, calibration (nats)"] > 0 for row in rows)
    assert not any("evaluation" in column for column in rows[0])


def test_without_scores_isolated_kl_and_output_error_are_left():
    info = figures.scores_info(sweep_result(layers=6))
    assert info.names == (ScoreName.KL, ScoreName.OUTPUT_ERROR)
    assert figures.correlations_figure(info).data[0].z[0][1] is not None
