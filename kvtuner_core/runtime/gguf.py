"""Converts a GGUF file to safetensors once, and finds the conversion again."""

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.provenance import is_out_of_memory

_VERSION = 1
_WHOLE = 1 << 30
_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600
_EXPANSION = 9
_READING = threading.Lock()


def converted_folder(path: Path, cache_dir: Path) -> Path:
    """The folder in Hugging Face layout, model and tokenizer, that ``path`` was or is now converted to.

    The first call for a file takes tens of seconds and about six times its size on disk; it writes
    to a folder beside and renames it, so that an interrupted conversion is never seen.

    Args:
        path: A GGUF file.
        cache_dir: Where conversions are kept.

    Raises:
        ModelError: If the file cannot be read, or the disk is too full.
    """
    target = _target(path, cache_dir)
    if not (target / "config.json").is_file():
        _check_disk(path, target.parent)
        _write(target, lambda folder: _convert(path, folder))
    return target


def gguf_config(path: Path, cache_dir: Path) -> PretrainedConfig:
    """The config of a GGUF file, without its weights.

    Raises:
        ModelError: If the file cannot be read.
    """
    target = _target(path, cache_dir)
    for folder in (target, target.with_suffix(".config")):
        if (folder / "config.json").is_file():
            found: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return found
    config: PretrainedConfig = _reading(path, lambda: AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    _write(target.with_suffix(".config"), config.save_pretrained)
    return config


def _target(path: Path, cache_dir: Path) -> Path:
    return cache_dir / "gguf" / _file_key(path)


def _file_key(path: Path) -> str:
    """Digest of the content; of a file above 1 GiB, of its size, time and 64 samples of 1 MiB."""
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{_VERSION} {size}".encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(_BLOCK):
                digest.update(block)
        else:
            digest.update(str(path.stat().st_mtime_ns).encode())
            for index in range(64):
                file.seek(index * (size - _BLOCK) // 63)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _check_disk(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = path.stat().st_size * _EXPANSION
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"Converting {path.name} needs up to {needed / 2**30:.1f} GiB on disk; {folder} has "
            f"{free / 2**30:.1f} GiB free. Make room, or set KVTUNER_HOME to another disk."
        )


def _convert(path: Path, folder: Path) -> None:
    dtype = torch.float32 if path.stat().st_size <= _WHOLE else torch.bfloat16
    with _read_once():
        model, found = _reading(
            path,
            lambda: AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True
            ),
        )
        _check_complete(path, found["missing_keys"])
        tokenizer = _reading(path, lambda: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
    # What is loaded is dequantised already; transformers refuses to save it while it is marked as quantised.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_complete(path: Path, missing: Collection[str]) -> None:
    """Refuse a file that lacks weights: transformers makes them up, and once saved, nobody could tell."""
    if missing:
        raise ModelError(
            f"A GGUF file must hold all weights of its model; {path.name} lacks {len(missing)}, such as "
            f"{min(missing)}. Download or convert it again."
        )


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        with _no_progress_bar():
            return read()
    # A damaged file can make the libraries below transformers raise anything, plain exceptions included.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path.name} is not a GGUF file that transformers can read: {reason}") from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Reading a GGUF file draws a bar that no setting of transformers turns off."""
    from transformers import modeling_gguf_pytorch_utils as module

    original = getattr(module, "tqdm", None)
    setattr(module, "tqdm", lambda items, **_: items)  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "tqdm", original)  # noqa: B010


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Parse a file once, not for the model and the tokenizer each, and list names once, not for every module."""
    try:
        import gguf
    except ImportError:
        yield
        return
    names = ("GGUFReader", "get_tensor_name_map")
    # Of two at once, one would put back what the other had put in place.
    with _READING:
        originals = {name: getattr(gguf, name) for name in names}
        for name, original in originals.items():
            setattr(gguf, name, functools.cache(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(gguf, name, original)


def _write(target: Path, write: Callable[[Path], object]) -> None:
    """Fill a temporary folder beside ``target``, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".converting-*"):
        if left.stat().st_mtime < time.time() - _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        write(folder)
        try:
            os.replace(folder, target)
        except OSError:
            # Another process finished first; its result is as good.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
