import pytest

from kvtuner_core.domain.runs import RunKind, RunStatus
from kvtuner_core.services import results
from tests.pages.conftest import keep


def _button(app, label):
    return next(button for button in app.button if button.label == label)


def test_a_run_is_deleted_only_after_a_second_click(store, open_page):
    keep(store, "old", RunKind.SWEEP, RunStatus.DONE)
    app = open_page("runs")
    assert any("sweep old" in element.value for element in app.markdown)
    _button(app, "Delete the run").click().run()
    assert not app.exception
    assert not results.list_runs(store)


@pytest.mark.usefixtures("demo")
def test_the_demo_study_cannot_be_deleted(open_page):
    assert not any(button.label == "Delete the run" for button in open_page("runs").button)


def test_the_list_can_be_narrowed_to_a_kind(store, open_page):
    keep(store, "one", RunKind.SWEEP, RunStatus.DONE)
    keep(store, "two", RunKind.SEARCH, RunStatus.DONE)
    app = open_page("runs", kind="search")
    titles = " ".join(element.value for element in app.markdown)
    assert "search two" in titles
    assert "sweep one" not in titles


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.INTERRUPTED])
def test_a_stopped_run_can_be_resumed(store, open_page, status):
    keep(store, "stopped", RunKind.SEARCH, status)
    assert any(button.label == "Resume" for button in open_page("runs").button)
