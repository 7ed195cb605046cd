from pathlib import Path

import pytest

from kvtuner_core.errors import InputError, StoreError
from kvtuner_core.services.workspace import Settings, Workspace, is_allowed


def test_settings_come_from_the_environment(tmp_path):
    settings = Settings.from_environment(
        {
            "KVTUNER_HOME": str(tmp_path),
            "KVTUNER_STORE": str(tmp_path / "x.duckdb"),
            "KVTUNER_SCHEDULER": "tcp://host:8786",
            "KVTUNER_WORKERS": "3",
            "KVTUNER_MODEL_ROOTS": f"{tmp_path}:{tmp_path}",
        }
    )
    assert settings.model_cache == tmp_path / "models"
    assert settings.store_path == tmp_path / "x.duckdb"
    assert settings.scheduler == "tcp://host:8786"
    assert settings.workers == 3
    assert settings.model_roots == (tmp_path, tmp_path)


def test_without_variables_local_models_may_lie_anywhere_on_loopback_only():
    assert Settings.from_environment({}).model_roots is None
    assert Settings.from_environment({}, loopback=False).model_roots == ()
    assert Settings.from_environment({}).store_path.name == "kvtuner.duckdb"


def test_a_root_must_exist(tmp_path):
    with pytest.raises(InputError, match="KVTUNER_MODEL_ROOTS must name existing folders"):
        Settings.from_environment({"KVTUNER_MODEL_ROOTS": str(tmp_path / "gone")})


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "257", "²"])
def test_workers_are_a_number_of_processes(text):
    with pytest.raises(InputError, match="KVTUNER_WORKERS must be a whole number from 1 to 256; got"):
        Settings.from_environment({"KVTUNER_WORKERS": text})
    assert Settings.from_environment({}).workers is None


def test_roots_allow_what_lies_in_them(tmp_path):
    assert is_allowed(Path("/etc/passwd"), None)
    assert not is_allowed(tmp_path, ())
    assert is_allowed(tmp_path / "a", (tmp_path,))
    assert not is_allowed(tmp_path / "a" / ".." / ".." / "b", (tmp_path,))


def test_a_workspace_opens_closes_and_makes_its_folder(tmp_path):
    settings = Settings(home=tmp_path, store_path=tmp_path / "new" / "store.duckdb")
    with Workspace.open(settings, inline=True) as ws:
        assert ws.store.runs() == ()
    assert (tmp_path / "new" / "store.duckdb").is_file()


def test_a_store_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="folder must be writable"):
        Workspace.open(Settings(home=tmp_path, store_path=tmp_path / "file" / "s.duckdb"), inline=True)
    with pytest.raises(StoreError):
        Workspace.open(Settings(home=tmp_path, store_path=tmp_path / "file"), inline=True)
