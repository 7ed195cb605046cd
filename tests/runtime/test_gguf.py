import os
import threading
import time

import pytest
import torch

from kvtuner_core.domain.model import DeviceChoice, ModelSpec
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.gguf import _read_once, converted_folder
from kvtuner_core.runtime.loading import describe, load
from tests.fakes import gguf_file
from tests.fakes.gguf_file import write_tiny_gguf


@pytest.fixture
def file(tmp_path):
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_a_file_is_described_and_loaded_with_its_tokenizer(file, tmp_path, capfd):
    described = describe(str(file), cache_dir=tmp_path)
    loaded = load(ModelSpec(reference=str(file), device=DeviceChoice.CPU), cache_dir=tmp_path)
    assert described.layers == loaded.info.layers
    assert (described.name, described.geometry_digest) == ("tiny", loaded.info.geometry_digest)
    assert loaded.tokenizer.decode(loaded.tokenizer("hello ab").input_ids) == "hello ab"
    assert torch.isfinite(loaded.model(torch.tensor([[1, 2, 3]])).logits).all()
    assert capfd.readouterr() == ("", "")


def test_a_file_is_converted_once_and_again_when_its_content_changes(file, tmp_path):
    first = converted_folder(file, tmp_path)
    weights = first / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    os.utime(file, (1, 1))
    assert converted_folder(file, tmp_path) == first
    assert weights.stat().st_mtime_ns == stamp
    write_tiny_gguf(file, seed=1)
    assert converted_folder(file, tmp_path) != first


def test_a_conversion_parses_its_file_once(file, tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path, *more):
            parsed.append(path)
            super().__init__(path, *more)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    converted_folder(file, tmp_path)
    assert parsed == [str(file)]
    assert gguf.GGUFReader is Counted


def test_conversions_that_overlap_leave_the_reader_as_it_was():
    gguf = pytest.importorskip("gguf")
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    inside, first_is_out = threading.Event(), threading.Event()

    def second():
        inside.wait(10)
        with _read_once():
            first_is_out.wait(10)

    thread = threading.Thread(target=second)
    thread.start()
    with _read_once():
        inside.set()
        # Time for the other one to come in, if nothing keeps it out.
        thread.join(0.1)
    first_is_out.set()
    thread.join(10)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_an_interrupted_conversion_is_never_seen_and_cleaned_up(file, tmp_path, monkeypatch):
    left = tmp_path / "gguf" / ".converting-left"
    left.mkdir(parents=True)
    os.utime(left, (time.time() - 1e6,) * 2)

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("kvtuner_core.runtime.gguf._convert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            converted_folder(file, tmp_path)
    assert not list((tmp_path / "gguf").iterdir())
    assert (converted_folder(file, tmp_path) / "config.json").is_file()


def test_a_damaged_file_is_one_clear_line(file, tmp_path):
    file.write_bytes(file.read_bytes()[:2000])
    for action in (
        lambda: describe(str(file), cache_dir=tmp_path),
        lambda: load(ModelSpec(reference=str(file), device=DeviceChoice.CPU), cache_dir=tmp_path),
    ):
        with pytest.raises(ModelError, match="GGUF") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "gguf").iterdir())


def test_a_full_disk_is_said_before_the_work(file, tmp_path, monkeypatch):
    monkeypatch.setattr("kvtuner_core.runtime.gguf._EXPANSION", 10**12)
    with pytest.raises(ModelError, match="KVTUNER_HOME"):
        converted_folder(file, tmp_path)


def test_weights_that_are_not_there_are_never_made_up(tmp_path, monkeypatch):
    whole = gguf_file._tensors

    def holes(vocabulary):
        return {name: shape for name, shape in whole(vocabulary).items() if "blk.1.attn_q" not in name}

    monkeypatch.setattr(gguf_file, "_tensors", holes)
    path = write_tiny_gguf(tmp_path / "holes.gguf")
    with pytest.raises(ModelError, match=r"lacks 1, such as model\.layers\.1\.self_attn\.q_proj"):
        converted_folder(path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "gguf").glob("[!.]*"))
