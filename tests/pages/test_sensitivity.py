from dataclasses import replace

import pytest

from kvtuner_core import figures
from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.store import to_json
from tests.fakes.studies import picked, sweep_result
from tests.pages.conftest import keep


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("metric", ["kl", "output_error", "score_error", "key_error", "value_error"])
def test_every_metric_is_drawn(open_page, metric):
    app = open_page("sensitivity", metric=metric, layer="3")
    assert not app.exception
    assert not app.error
    assert app.query_params["layer"] == "3"


def test_a_sweep_of_its_own_is_shown_too(store, open_page):
    keep(store, "swept", RunKind.SWEEP, RunStatus.DONE)
    app = open_page("sensitivity", run="swept")
    assert not app.exception
    assert [metric.label for metric in app.metric][:3] == [
        "Policies before",
        "After pruning pairs",
        "After grouping layers",
    ]


@pytest.mark.usefixtures("demo")
def test_a_layer_that_is_not_there_is_said_and_passed_over(open_page):
    app = open_page("sensitivity", layer="999")
    assert not app.exception
    assert any("999" in element.value for element in app.warning)


def test_scores_are_shown_side_by_side_with_what_they_pick(store, open_page):
    swept = sweep_result(layers=6, scored=True)
    keep(store, "scored", RunKind.SWEEP, RunStatus.DONE)
    store.store.put_result("scored", to_json(replace(swept, scores=picked(swept))))
    app = open_page("sensitivity", run="scored")
    assert not app.exception
    assert "Scores of layers, side by side" in [element.value for element in app.subheader]
    tables = [frame.value for frame in app.dataframe]
    (picks,) = [frame for frame in tables if "Bits at 4.50" in frame]
    assert list(picks["Score"]) == list(figures.scores_info(swept).correlation_rows()[0])[1:]
    assert (picks["Bits at 4.50"] <= 4.5).all()
    assert any("Gradient norm, W_k" in frame for frame in tables)


def test_a_sweep_without_scores_says_how_to_get_them(store, open_page):
    keep(store, "plain", RunKind.SWEEP, RunStatus.DONE)
    app = open_page("sensitivity", run="plain")
    assert not app.exception
    assert any("Start the same sweep again" in element.value for element in app.info)
    assert not any("Rank correlation to KL" in frame.value for frame in app.dataframe)
