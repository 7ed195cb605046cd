import json
from types import SimpleNamespace

import pytest

from kvtuner_core.cli.main import main
from tests.fakes.models import save_tiny

SMALL = ("--limit", "2", "--prefix-tokens", "48", "--suffix-tokens", "8")
FEW = ("--evaluations", "8", "--population", "4", "--evaluation-limit", "2", "--evaluation-suffix-tokens", "8")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("KVTUNER_STORE", "KVTUNER_SCHEDULER", "KVTUNER_MODEL_ROOTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVTUNER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def cli(home, capsys):
    """Runs a command; its exit code, stdout, stderr, and stdout as a document."""
    del home

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()

        def document():
            return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

        return SimpleNamespace(code=code, out=out, err=err, document=document)

    return run


@pytest.fixture
def searched(cli, tiny):
    """A small finished search, as its document."""
    done = cli("search", "--model", tiny, *SMALL, *FEW, "--no-pruning", "--json")
    assert done.code == 0, done.err
    return done.document()
