"""A server of its own and a real Chromium for every browser test."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.store import Store, to_json
from tests.browser.screen import Screen
from tests.fakes.models import save_tiny
from tests.fakes.studies import search_result

ROOT = Path(__file__).parents[2]
STUDY = "5eed5eed"
DEEP = 12
"""Layers of the model whose searches last: its policies do not run out before the evaluations do."""

NAMES = ("chromium", "chromium-browser", "google-chrome")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        message = "No Chromium found. Install it with: sudo apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


class Server:
    """A dashboard on a free loopback port with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.log"

    def start(self) -> None:
        home = str(self.home)
        environment = os.environ | {"KVTUNER_HOME": home, "KVTUNER_MODEL_ROOTS": home, "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("KVTUNER_STORE", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self.port)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self) -> None:
        for _ in range(300):
            try:
                probe = HTTPConnection("127.0.0.1", self.port, timeout=1)
                probe.request("GET", "/_stcore/health")
                if probe.getresponse().status == 200:
                    return
            except (HTTPException, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        pytest.fail(f"The dashboard did not start:\n{self.log.read_text(encoding='utf-8')[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def seed(home: Path) -> None:
    """Two tiny models, prompts of a few words, and a finished search."""
    save_tiny(home / "tiny", "llama")
    save_tiny(home / "deep", "llama", num_hidden_layers=DEEP)
    lines = [json.dumps({"text": f"{index} little bottles of green tea stand on the wall. " * 6}) for index in range(8)]
    (home / "calibration.jsonl").write_text("\n".join(lines[:4]), encoding="utf-8")
    (home / "evaluation.jsonl").write_text("\n".join(lines[4:]), encoding="utf-8")
    result = search_result(run=STUDY)
    record = RunRecord(
        id=STUDY,
        kind=RunKind.SEARCH,
        status=RunStatus.DONE,
        title="Search on a synthetic model",
        spec=to_json(result.spec),
        created="2026-11-20T09:30:00+00:00",
        finished="2026-11-20T09:34:00+00:00",
    )
    with Store.open(home / "kvtuner.duckdb") as store:
        store.add_run(record)
        store.put_result(STUDY, to_json(result))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Server]:
    del chromium
    running = Server(tmp_path_factory.mktemp("home"))
    seed(running.home)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def own_server(tmp_path: Path, chromium: str) -> Iterator[Server]:
    """A server that the test may kill."""
    del chromium
    running = Server(tmp_path)
    seed(running.home)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def screen(browser, server: Server) -> Iterator[Screen]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    watched = Screen(page, server.url)
    yield watched
    context.close()
