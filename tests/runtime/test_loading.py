import logging

import pytest
import torch

from kvtuner_core.domain.model import DeviceChoice, DtypeChoice, ModelSpec
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime import loading
from kvtuner_core.runtime.loading import choose_device, describe, load
from tests.fakes.models import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


def _spec(reference, **fields):
    return ModelSpec(reference=str(reference), device=DeviceChoice.CPU, **fields)


def test_a_folder_loads_quietly_and_says_what_it_is(folder, tmp_path, capfd):
    loaded = load(_spec(folder), cache_dir=tmp_path)
    assert loaded.model.dtype is loaded.dtype is torch.float32
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.info.name == "tiny-llama"
    assert len(loaded.info.layers) == 3
    assert loaded.tokenizer("hi").input_ids[0] == 257
    assert capfd.readouterr() == ("", "")
    assert describe(str(folder), cache_dir=tmp_path).geometry_digest == loaded.info.geometry_digest


def test_the_dtype_can_be_chosen_and_leaves_the_fingerprint(folder, tmp_path):
    full = load(_spec(folder), cache_dir=tmp_path)
    half = load(_spec(folder, dtype=DtypeChoice.BFLOAT16), cache_dir=tmp_path)
    assert half.model.dtype is half.dtype is torch.bfloat16
    assert half.info == full.info


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_a_gpu_is_one_clear_line():
    with pytest.raises(ModelError, match="CUDA"):
        choose_device(ModelSpec(device=DeviceChoice.CUDA))
    assert choose_device(ModelSpec()) == (torch.device("cpu"), torch.float32)


def test_models_with_capped_scores_run_eager(tmp_path):
    folder = save_tiny(tmp_path / "gemma", "gemma2")
    assert load(_spec(folder), cache_dir=tmp_path).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_files_are_one_clear_line(name, tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    (folder / name).write_bytes(b'{"broken')
    with pytest.raises(ModelError, match="could not be read") as caught:
        load(_spec(folder), cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_not_taken_for_a_damaged_file(error, folder, tmp_path, monkeypatch):
    def fail(*_args, **_fields):
        raise error

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)):
        load(_spec(folder), cache_dir=tmp_path)


def test_weights_that_are_not_there_are_never_made_up(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(ModelError, match=r"lacks 9, such as model\.layers\.3\."):
        load(_spec(folder), cache_dir=tmp_path)


def test_tied_weights_are_not_missing(tmp_path):
    folder = save_tiny(tmp_path / "tiny", tie_word_embeddings=True)
    assert load(_spec(folder), cache_dir=tmp_path).model.config.tie_word_embeddings


def test_code_in_the_folder_is_never_run(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    text = (folder / "config.json").read_text()
    changed = text.replace('"model_type": "llama"', '"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}')
    assert changed != text
    (folder / "config.json").write_text(changed)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        load(_spec(folder), cache_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_config_that_promises_another_cache_is_refused(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "tiny")
    wrong = loading.model_info

    def promise(reference, model):
        info = wrong(reference, model)
        return type(info)(
            **{name: getattr(info, name) for name in info.__slots__ if name != "layers"}, layers=info.layers[:2]
        )

    monkeypatch.setattr(loading, "model_info", promise)
    with pytest.raises(ModelError, match="promises 2"):
        load(_spec(folder), cache_dir=tmp_path)


def test_the_colliding_package_is_named(folder, tmp_path, monkeypatch):
    found = loading.metadata.version
    monkeypatch.setattr(loading.metadata, "version", lambda name: "0.18.5" if name == "kernels" else found(name))
    with pytest.raises(ModelError, match="pip uninstall kernels"):
        load(_spec(folder), cache_dir=tmp_path)


def test_an_unreachable_hub_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be read from the hub"):
        load(_spec("nobody-at-all/no-such-model"), cache_dir=tmp_path)


@pytest.mark.parametrize("library", ["transformers", "huggingface_hub"])
def test_quiet_restores_what_it_turned_off(library):
    logger = logging.getLogger(library)
    before = logger.level
    with loading.quiet():
        assert logger.level == logging.ERROR
    assert logger.level == before
