import pytest

from kvtuner_core.domain.runs import RunKind, RunStatus
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
