import pytest

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.model import BUNDLED_MODEL, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.runs import RunStatus
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import InspectTask
from kvtuner_core.errors import InputError, ModelError, SchemeError
from kvtuner_core.services import models, results
from kvtuner_core.store import to_json
from tests.fakes.models import save_tiny
from tests.fakes.studies import model_info, search_result
from tests.services.drive import drive


def test_the_bundled_model_comes_first(ws):
    first = models.list_models(ws)[0]
    assert first.reference == BUNDLED_MODEL
    assert first.available or "pip install" in first.hint


def test_folders_in_the_roots_and_models_used_before_are_offered(open_workspace, tmp_path, tiny):
    (tmp_path / "roots" / "other").mkdir(parents=True)
    (tmp_path / "roots" / "other" / "config.json").write_text("{}")
    (tmp_path / "roots" / "file.gguf").write_bytes(b"")
    (tmp_path / "roots" / "notes").mkdir()
    ws = open_workspace(model_roots=(tmp_path / "roots", tiny))
    run = models.start_inspection(ws, ModelSpec(reference=str(tiny)))
    assert ws.queue.wait(run, 60).record.status is RunStatus.DONE
    offered = {choice.reference: choice for choice in models.list_models(ws)}
    assert offered[str(tiny)].hint == "used before"
    assert str(tmp_path / "roots" / "other") in offered
    assert str(tmp_path / "roots" / "file.gguf") in offered
    assert str(tmp_path / "roots" / "notes") not in offered


def test_a_model_is_loaded_once_and_again_when_its_files_changed(ws, tmp_path):
    spec = ModelSpec(reference=str(save_tiny(tmp_path / "own")))
    assert models.report(ws, spec) is None
    _, found = drive(models.inspect(ws, spec))
    assert models.report(ws, spec) == found
    assert found.info.fingerprint
    _, again = drive(models.ensure_report(ws, spec))
    assert again == found
    assert ws.compute.count(InspectTask) == 1
    save_tiny(tmp_path / "own", seed=1)
    assert models.report(ws, spec) is None


def test_describing_reads_no_weights(ws, tiny):
    info = models.describe(ws, str(tiny))
    assert len(info.layers) == 3
    assert not ws.compute.tasks


@pytest.mark.model
def test_the_bundled_model_is_described_from_the_demo_study(ws, monkeypatch, tmp_path):
    path = tmp_path / "demo.json"
    path.write_text(to_json(search_result(run="demo", shipped=True)))
    monkeypatch.setattr(results, "DEMO_FILE", path)
    info = models.describe(ws, BUNDLED_MODEL)
    assert (len(info.layers), info.fingerprint) == (30, "")


def test_a_model_outside_the_roots_is_refused_and_its_files_unseen(open_workspace, tiny, tmp_path):
    ws = open_workspace()
    drive(models.inspect(ws, ModelSpec(reference=str(tiny))))
    (tmp_path / "allowed").mkdir()
    ws = open_workspace(model_roots=(tmp_path / "allowed",))
    assert models.report(ws, ModelSpec(reference=str(tiny))) is None
    with pytest.raises(ModelError):
        models.describe(ws, str(tiny))


def test_memory_rows_agree_with_the_memory_model():
    info = model_info(4)
    scheme = QuantScheme.kivi()
    rows = models.memory_rows(info, scheme, batch=3, context=1000)
    assert [row.name for row in rows] == ["K16V16", "K8V8", "K4V4", "K2V2"]
    policy = KVPolicy.uniform("KV4", layers=4, scheme=scheme)
    assert rows[2].bytes == cache_bytes(policy, info.layers, tokens=1000, batch=3)
    assert rows[0].bytes == 3 * 1000 * 4 * 2 * 3 * 64 * 2
    assert rows[0].bytes_per_token == 4 * 2 * 3 * 64 * 2


def test_memory_rows_check_what_they_are_given():
    with pytest.raises(InputError, match="at least 1"):
        models.memory_rows(model_info(2), QuantScheme.per_token(), batch=0, context=1)
    with pytest.raises(SchemeError, match="must divide head_dim"):
        models.memory_rows(model_info(2), QuantScheme.per_token(group_size=48), batch=1, context=1)
