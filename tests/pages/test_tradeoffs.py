import pytest

from kvtuner_core.domain.runs import RunKind, RunStatus
from tests.pages.conftest import keep


def _picked(app) -> str:
    return next(element.value for element in app.subheader if element.value.startswith("Best within the budget"))


@pytest.mark.usefixtures("demo")
def test_the_address_sets_the_budget_and_the_slider_moves_it(open_page):
    app = open_page("tradeoffs", bits="5.5")
    assert app.slider[0].value == 5.5
    before = _picked(app)
    app.slider[0].set_value(7.5).run()
    assert _picked(app) != before
    assert app.query_params["bits"] == "7.5"


@pytest.mark.usefixtures("demo")
def test_a_budget_out_of_bounds_is_held_within_them(open_page):
    app = open_page("tradeoffs", bits="99")
    assert app.slider[0].value == app.slider[0].max
    assert open_page("tradeoffs", bits="-1").slider[0].value == app.slider[0].min


@pytest.mark.usefixtures("demo")
def test_the_budget_can_be_memory_at_a_batch_and_context(open_page):
    app = open_page("tradeoffs", unit="gib", batch="8", context="32768")
    assert not app.exception
    assert "GiB" in app.slider[0].label
    assert _picked(app)


@pytest.mark.usefixtures("demo")
def test_policies_stand_side_by_side(open_page):
    app = open_page("tradeoffs", policy=["K2V2", "K8V8", "nonsense"])
    assert app.multiselect[0].value == ["K2V2", "K8V8"]
    table = app.dataframe[-1].value
    assert len(table) == 3
    assert {"Effective bits", "Nominal bits", "KL (nats/token)", "Same top token (%)"} <= set(table.columns)


@pytest.mark.usefixtures("demo")
def test_calibration_and_evaluation_can_be_switched(open_page):
    app = open_page("tradeoffs", seen="calibration")
    assert not app.exception
    assert not app.error


@pytest.mark.usefixtures("demo")
def test_how_far_it_can_be_trusted_is_one_closed_box(open_page):
    app = open_page("tradeoffs")
    closed = " ".join(element.value for element in (*app.markdown, *app.caption))
    assert "Rank correlation" not in closed
    app = open_page("tradeoffs", trust="true")
    assert not app.exception
    assert not app.error
    shown = " ".join(element.value for element in (*app.markdown, *app.caption))
    assert "Overfit" in shown
    assert "Prefill" in shown
    assert "measured" in shown
    assert "1 search of this model" in shown
    assert any("Strategy" in table.value.columns for table in app.dataframe)


def test_other_solvers_of_the_same_prompts_stand_beside(store, open_page):
    for run in ("one", "two"):
        keep(store, run, RunKind.SEARCH, RunStatus.DONE)
    app = open_page("tradeoffs", run="one", trust="true")
    assert not app.exception
    table = next(table.value for table in app.dataframe if "Regret" in table.value.columns)
    assert set(table["Run"]) == {"one", "two"}


@pytest.mark.usefixtures("demo")
def test_a_run_that_is_not_there_is_named_as_it_was_written(open_page):
    shown = open_page("tradeoffs", run="<b>it's</b>")
    assert any(r"Run '\<b\>it's\</b\>' from the address" in item.value for item in shown.warning)
