"""The box of kinds on the Trade-offs page: nothing yet, at work, measured, failed."""

from dataclasses import replace

import pytest

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.services import kinds, results
from kvtuner_core.services.picking import Budget, pick
from kvtuner_core.store import to_json
from tests.fakes.kinds import kinds_result, with_kl, with_right

BITS = 5.0


def _spec():
    study = results.demo_study()
    return kinds.kinds_spec(study, pick(study, Budget(max_bits=BITS)).policy)


def _keep(ws, status, *, result=None, error=""):
    spec = _spec()
    record = RunRecord(
        id="kinds1",
        kind=RunKind.EVALUATION,
        status=status,
        title="a policy on other kinds of text",
        spec=to_json(spec),
        created="2026-11-20T09:30:00+00:00",
        stage="kinds",
        done=3,
        total=54,
        error=error,
    )
    ws.store.add_run(record)
    if result is not None:
        ws.store.put_result(record.id, to_json(replace(result, run=record.id, spec=spec)))


def _words(app):
    return " ".join(element.value for element in (*app.markdown, *app.caption, *app.error))


def _table(app):
    return next((table.value for table in app.dataframe if "Right, full precision" in table.value.columns), None)


@pytest.fixture
def opened(demo, store, open_page):
    """Opens the page with the box open, on the demo study."""
    del demo

    def at(**parameters):
        app = open_page("tradeoffs", run="demo", bits=str(BITS), kinds="true", **parameters)
        assert not app.exception
        return app

    at.store = store
    return at


def test_a_closed_box_reads_nothing(demo, open_page):
    del demo
    app = open_page("tradeoffs", run="demo", bits=str(BITS))
    assert not app.exception
    assert "Measure this policy" not in [button.label for button in app.button]


def test_nothing_measured_yet_offers_to_start(opened, monkeypatch):
    asked = []
    monkeypatch.setattr(kinds, "start_kinds", lambda _, spec: asked.append(spec))
    app = opened()
    assert _table(app) is None
    assert "was tuned on" in _words(app)
    next(button for button in app.button if button.label == "Measure this policy").click().run()
    assert asked == [_spec()]


def test_what_was_measured_is_a_table_with_its_findings(opened):
    result = with_right(with_kl(kinds_result(), "retrieval", 9.0), "retrieval", own=8, full=22)
    _keep(opened.store, RunStatus.DONE, result=result)
    app = opened()
    table = _table(app)
    assert list(table["Kind"]) == ["Prose", "Maths", "Chat", "Retrieval"]
    last = table.iloc[-1]
    assert (last["Task"], last["Right"][:3], last["Right, full precision"][:3]) == ("recall", "32%", "88%")
    assert last["Difference (points)"].startswith("-56")
    assert "KL is highest on retrieval" in _words(app).replace("\\", "")
    assert "Measure this policy" not in [button.label for button in app.button]


def test_a_failed_measurement_says_why_and_goes_on_without_leaving_the_search(opened, monkeypatch):
    _keep(opened.store, RunStatus.FAILED, error="The device ran out of memory. Use fewer prompts.")
    app = opened()
    assert "ran out of memory" in _words(app)
    monkeypatch.setattr("kvtuner_core.services.studies.resume", lambda _, run: run)
    next(button for button in app.button if button.label == "Resume").click().run()
    assert not app.exception
    assert app.query_params["run"] in ("demo", ["demo"])


def test_a_finished_run_is_shown_on_the_runs_page(opened, open_page):
    _keep(opened.store, RunStatus.DONE, result=kinds_result())
    app = open_page("runs", kind="evaluation")
    assert not app.exception
    assert _table(app) is not None


def test_a_kind_without_a_task_says_so():
    from pages.components.kinds import row

    found = kinds_result()
    assert row(found.rows[2])["Task"] == "none"
    assert row(found.rows[3])["Right"] == "88% (70 to 96)"
