import re

import pytest

from kvtuner_core.domain.runs import RunKind, RunStatus
from tests.pages.conftest import keep


def _shown(app) -> str:
    return " ".join(element.value for element in (*app.markdown, *app.caption, *app.error))


@pytest.mark.usefixtures("home")
def test_the_form_says_what_a_search_will_cost(open_page):
    app = open_page("search", new="true")
    assert not app.exception
    assert not app.error
    assert "measurements" in _shown(app)
    assert any(button.label == "Start the search" for button in app.button)


@pytest.mark.usefixtures("demo")
def test_a_closed_form_asks_nothing_of_a_model(open_page):
    app = open_page("search")
    assert not any(button.label == "Start the search" for button in app.button)
    assert [metric.label for metric in app.metric][:2] == ["Policies scored", "On the front"]


@pytest.mark.usefixtures("home")
def test_a_scheme_that_does_not_fit_is_one_line_and_the_form_stays(open_page):
    app = open_page("search", new="true", **{"group_per-token": "nonsense", "bits": ["16", "5"]})
    assert not app.exception
    assert app.number_input(key="evaluations").value == 200


def test_a_stopped_search_says_how_far_it_came(store, open_page):
    keep(store, "stopped", RunKind.SEARCH, RunStatus.INTERRUPTED)
    app = open_page("search", run="stopped")
    assert "5 of 20" in _shown(app)
    assert any(button.label == "Resume" for button in app.button)


@pytest.mark.usefixtures("home")
def test_the_strategy_and_the_bounds_are_in_the_address(open_page):
    bounds = {"pin": "0:K8V8", "forbid": "1:K2V2, 2:K4V2", "max_pairs": "2"}
    app = open_page("search", new="true", strategy="moead", stop_early="true", **bounds)
    assert not app.exception
    assert not app.error
    assert next(box.value for box in app.selectbox if box.label == "Strategy") == "moead"
    assert not app.number_input(key="population").disabled
    assert app.toggle(key="stop_early").value
    app = open_page("search", new="true")
    assert app.number_input(key="population").disabled
    assert not app.toggle(key="stop_early").value
    wrong = open_page("search", new="true", pin="K8V8", stop_early="true", objective="p95-kl")
    # What is minimised has no lower bound to stop at.
    assert wrong.toggle(key="stop_early").disabled
    assert "written like 3:K8V4" in _shown(wrong).replace("\\", "")


def test_a_finished_search_says_what_stopping_spared(store, open_page):
    keep(store, "quick", RunKind.SEARCH, RunStatus.DONE, stop_early=True)
    app = open_page("search", run="quick")
    assert not app.exception
    assert next(metric.value for metric in app.metric if metric.label == "Policies scored") == "60"
    assert re.search(r"Stopped early: \d+ of 60 policies, beaten for certain; \d+ of 360 prompts spared", _shown(app))
    keep(store, "whole", RunKind.SEARCH, RunStatus.DONE)
    assert "Stopped early" not in _shown(open_page("search", run="whole"))
