"""Whether a model's files are here and whether they changed, without reading weights or importing torch."""

import hashlib
from pathlib import Path

from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.references import resolve_reference

_PATTERNS = ("config.json", "*.safetensors", "*.gguf", "tokenizer.json")


def model_signature(reference: str, *, roots: tuple[Path, ...] | None = None) -> str | None:
    """A digest that changes when the model's files do; ``None`` where they are not here or not allowed.

    Local files count by path, size and time of change; a hub id by the commit in the local cache.

    Args:
        reference: As in a `ModelSpec`.
        roots: Folders that local models must lie in, or ``None`` for no restriction.
    """
    try:
        found = resolve_reference(reference, roots=roots)
    except ModelError:
        return None
    if found.path is None:
        return _hub_commit(reference)
    if found.path.is_file():
        return _digest([found.path])
    return _digest(sorted({file for pattern in _PATTERNS for file in found.path.glob(pattern)}))


def _digest(files: list[Path]) -> str | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _hub_commit(reference: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(reference, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None
