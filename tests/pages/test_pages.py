"""Every page: with nothing, with a study, with a failed run, with a spoilt address."""

import pytest

from kvtuner_core.domain.runs import RunKind, RunStatus
from tests.pages.conftest import NAMES, keep


def _errors(app) -> list[str]:
    assert not app.exception, app.exception
    return [element.value for element in app.error]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_store_says_what_to_do_next(open_page, name):
    app = open_page(name)
    assert not _errors(app)
    assert app.title


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", NAMES)
def test_every_page_works_on_the_demo_study(open_page, name):
    app = open_page(name)
    assert not _errors(app)
    assert not app.warning


@pytest.mark.parametrize("name", ["sensitivity", "search", "tradeoffs", "runs"])
def test_a_failed_run_says_why_in_one_line(store, open_page, name):
    keep(store, "dead", RunKind.SEARCH, RunStatus.FAILED, error="The device ran out of memory. Use fewer prompts.")
    app = open_page(name, run="dead")
    assert not app.exception
    shown = " ".join(element.value for element in (*app.error, *app.markdown))
    assert "ran out of memory" in shown
    assert any(button.label == "Resume" for button in app.button)


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["../../etc/passwd", "<script>alert(1)</script>", "x" * 5000, "NaN", ""])
def test_a_spoilt_address_never_breaks_a_page(open_page, name, value):
    spoilt = dict.fromkeys(
        ("run", "policy", "metric", "layer", "bits", "gib", "unit", "seen", "batch", "context"), value
    )
    app = open_page(name, **spoilt, kind=value, source=value, pair=value)
    assert not app.exception
    assert all("unexpected" not in element.value for element in app.error)


def test_a_locked_store_is_one_line_on_every_page(home, open_page):
    from kvtuner_core.store import Store

    path = home / "kvtuner.duckdb"
    path.write_bytes(b"this is no database")
    app = open_page("runs")
    assert len(_errors(app)) == 1
    with pytest.raises(Exception, match=r"\S"):
        Store.open(path)
