import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from kvtuner_core import __version__
from kvtuner_core.__main__ import run
from kvtuner_core.cli.main import main
from kvtuner_core.domain.runs import Progress
from tests.cli.conftest import FEW, SMALL

ROOT = Path(__file__).parents[2]
COMMANDS = ("models", "sweep", "search", "pick", "evaluate", "generate", "export", "import", "runs")


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "kvtuner_core", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("nothing",), "invalid choice"),
        (("sweep", "--nothing"), "unrecognized arguments"),
        (("sweep", "--lim", "3"), "unrecognized arguments"),
        (("sweep", "--bits", "2,x"), "written like 2,4,8"),
        (("sweep", "--bits", "5"), "must be one of 16, 8, 4, 3 or 2; got 5"),
        (("sweep", "--limit", "0"), "limit must be from 1"),
        (("sweep", "--limit", "x"), "invalid int value"),
        (("sweep", "--scheme", "other"), "invalid choice"),
        (("sweep", "--scheme", "kivi", "--group-size", "0"), "group_size"),
        (("sweep", "--residual", "-1"), "residual_length"),
        (("sweep", "--prompts", "gone.jsonl"), "existing file"),
        (("sweep", "--model", "./gone"), "gone"),
        (("sweep", "--device", "tpu"), "invalid choice"),
        (("search", "--evaluations", "0"), "evaluations must be from 1"),
        (("search", "--evaluation-prompts", "calibration"), "Evaluation prompts must be other texts"),
        (("generate", "--policy", "K5V5", "--prompt", "x"), "must be one of 16"),
        (("generate", "--policy", "gone.json", "--prompt", "x"), "existing file"),
        (("generate", "--policy", "KV4", "--prompt", ""), "needs a prompt"),
        (("evaluate", "--policy", "KV4", "--prompts", "gone.txt"), "existing file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_two(cli, arguments, message):
    done = cli(*arguments, *(("--json",) if arguments else ()))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_group_size_that_does_not_divide_the_head_is_bad_usage(cli, tiny):
    done = cli("sweep", "--model", tiny, *SMALL, "--group-size", "12")
    assert done.code == 2
    assert "group_size must divide head_dim (16); got 12" in done.err


def test_unreadable_prompts_are_bad_usage(cli, tiny, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n')
    done = cli("sweep", "--model", tiny, "--prompts", path)
    assert done.code == 2
    assert "Line 2 of 'bad.jsonl'" in done.err


def test_a_locked_store_is_a_failure_that_names_the_holder(home):
    store = home / "held.duckdb"
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        done = _run("runs", "--store", store, "--json", KVTUNER_HOME=home)
        assert (done.returncode, done.stdout) == (1, "")
        assert str(holder.pid) in done.stderr
        assert done.stderr.count("\n") == 1
        # What keeps nothing does not need the store.
        assert _run("models", KVTUNER_HOME=home, KVTUNER_STORE=store).returncode == 0
    finally:
        holder.communicate()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "Stopped"), (RuntimeError("one\ntwo"), 1, "Unexpected failure, RuntimeError: one two")],
)
def test_whatever_happens_there_is_no_traceback(cli, monkeypatch, error, code, message):
    from kvtuner_core.cli import stored

    def fail(_ws):
        raise error

    monkeypatch.setattr(stored.models, "list_models", fail)
    done = cli("models")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("options", "traced"), [((), False), (("-X", "dev", "-W", "ignore"), True)])
def test_python_s_development_mode_shows_where_an_unexpected_failure_came_from(options, traced, tmp_path):
    code = (
        "from kvtuner_core.cli import main, stored\n"
        "stored.models.list_models = None\n"
        "raise SystemExit(main.main(['models']))"
    )
    environment = os.environ | {"KVTUNER_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) is traced
    assert ("python -X dev" in done.stderr) is not traced


def test_what_libraries_print_stays_out_of_the_document(cli, monkeypatch):
    from kvtuner_core.cli import stored

    def chatter(_ws):
        print("loading")  # noqa: T201
        return ()

    monkeypatch.setattr(stored.models, "list_models", chatter)
    done = cli("models", "--json")
    assert done.document() == {"models": []}
    assert done.err == "loading\n"


def test_help_and_usage_errors_load_nothing_heavy():
    heavy = "{'torch', 'transformers', 'distributed', 'pymoo', 'plotly', 'sklearn', 'streamlit'}"
    code = (
        "import sys\nfrom kvtuner_core.cli.main import main\n"
        f"code = main(['sweep', '--nothing'])\nassert code == 2\nassert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_module_runs():
    done = _run("--version")
    assert (done.returncode, done.stdout) == (0, f"kvtuner {__version__}\n")


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_stopped(tiny, home):
    command = ("search", "--model", tiny, *SMALL, *FEW, "--no-pruning", "--no-grouping", "--json")
    command = [*command, "--evaluations", "30"]
    whole = json.loads(_run(*command, "--store", home / "whole.duckdb", KVTUNER_HOME=home).stdout)
    store = home / "killed.duckdb"
    process = subprocess.Popen(
        [sys.executable, "-m", "kvtuner_core", *command, "--store", str(store)],
        cwd=ROOT,
        env=os.environ | {"KVTUNER_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The store's log grows with each measurement.
    log = Path(f"{store}.wal")
    while process.poll() is None and not (log.exists() and log.stat().st_size > 12_000):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = json.loads(_run(*command, "--store", store, KVTUNER_HOME=home).stdout)
    assert [item["kl"] for item in again["front"]] == [item["kl"] for item in whole["front"]]
    runs = json.loads(_run("runs", "--json", "--store", store, KVTUNER_HOME=home).stdout)["runs"]
    assert [run["status"] for run in runs if run["run"] != "demo"] == ["done", "interrupted"]


def test_progress_is_shown_on_a_terminal_only(capsys):
    import io
    import sys as system

    from kvtuner_core.cli.output import Output

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def steps():
        yield Progress(stage="sweep", done=0, total=2)
        yield Progress(stage="sweep", done=2, total=2, reused=1, message="[layer] 1")
        return "done"

    terminal, plain = Terminal(), io.StringIO()
    assert Output(stdout=system.stdout, stderr=terminal, as_json=True).follow(steps()) == "done"
    assert "sweep" in terminal.getvalue()
    assert "[layer] 1" in terminal.getvalue()
    assert Output(stdout=system.stdout, stderr=plain, as_json=False).follow(steps()) == "done"
    assert plain.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_a_terminal_that_is_not_utf8_gets_an_escape(monkeypatch):
    wire = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(wire, encoding="ascii", write_through=True))
    assert main(["models", "--model", "/gone/mod\u00e8le"]) != 0
    assert b"/gone/mod\\xe8le" in wire.getvalue()


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys):
    class Interrupted(types.ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "kvtuner_core.cli.main", Interrupted("kvtuner_core.cli.main"))
    assert run() == 130
    assert capsys.readouterr().err == "error: Stopped before anything began.\n"
