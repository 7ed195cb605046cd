"""A dashboard with a home of its own, in this process."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.services import results
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import to_json
from pages.components.workspace import workspace
from tests.fakes.studies import search_result, sweep_result

ROOT = Path(__file__).parents[2]
NAMES = ("overview", "model", "sensitivity", "search", "tradeoffs", "compare", "runs")

Open = Callable[..., AppTest]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store and no demo study."""
    monkeypatch.setenv("KVTUNER_HOME", str(tmp_path))
    monkeypatch.setenv("KVTUNER_MODEL_ROOTS", str(tmp_path))
    for name in ("KVTUNER_STORE", "KVTUNER_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(results, "DEMO_FILE", tmp_path / "demo_study.json")
    st.cache_resource.clear()
    yield tmp_path
    st.cache_resource.clear()


@pytest.fixture
def demo(home: Path) -> Path:
    """A small study in the place of the shipped one."""
    study = replace(search_result(layers=8, evaluations=30, run="demo"), shipped=True)
    (home / "demo_study.json").write_text(to_json(study), encoding="utf-8")
    return home


@pytest.fixture
def store(home: Path) -> Workspace:
    """The workspace that the pages will use."""
    del home
    return workspace()


def keep(
    ws: Workspace,
    run: str,
    kind: RunKind,
    status: RunStatus,
    *,
    error: str = "",
    result: bool = True,
    stop_early: bool = False,
) -> None:
    """Put a run into the store, finished ones with a result."""
    searched = search_result(layers=6, evaluations=60 if stop_early else 20, run=run, stop_early=stop_early)
    value = searched if kind is RunKind.SEARCH else sweep_result(layers=6)
    record = RunRecord(
        id=run,
        kind=kind,
        status=status,
        title=f"{kind} {run}",
        spec=to_json(value.spec),
        created="2026-11-20T09:30:00+00:00",
        stage="search",
        done=5,
        total=20,
        error=error,
    )
    ws.store.add_run(record)
    if result and status is RunStatus.DONE:
        ws.store.put_result(run, to_json(value))


@pytest.fixture
def open_page() -> Open:
    """Opens a page at an address."""

    def opened(name: str, **parameters: str | list[str]) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=180)
        app.run()
        if name != "overview":
            app.switch_page(f"pages/{name}.py")
        for key, value in parameters.items():
            app.query_params[key] = value
        return app.run()

    return opened
