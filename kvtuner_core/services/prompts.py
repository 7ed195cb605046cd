"""Prompt sets: shipped ones, local files, and uploads."""

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from kvtuner_core.domain.prompts import Prompt, PromptKind, PromptRole, PromptSet
from kvtuner_core.errors import PromptError
from kvtuner_core.services.files import read_limited
from kvtuner_core.services.prompt_files import MAX_BYTES, SUFFIXES, read_prompts
from kvtuner_core.services.workspace import DATA_FOLDER, Workspace, is_allowed

PROMPT_FOLDER = DATA_FOLDER / "prompts"
"""The shipped sets, an ``index.json`` that names them, their origin and licences."""

_UPLOAD = "upload:"
_NAME_LIMIT = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSetInfo:
    """What is known of a prompt set without using it.

    Attributes:
        reference: What `resolve_prompts` takes: a shipped name or ``upload:DIGEST``.
        name: Readable name.
        role: What it may be used for.
        count: Number of prompts.
        characters: Characters of all of them, completions included.
        origin: Where the text comes from.
        licence: Under which terms.
        kind: What its texts are, where they are all of one kind.
    """

    reference: str
    name: str
    role: PromptRole
    count: int
    characters: int
    origin: str
    licence: str
    kind: PromptKind | None = None


def list_prompt_sets(ws: Workspace) -> tuple[PromptSetInfo, ...]:
    """The shipped sets and the uploads, in this order."""
    shipped = [
        replace(
            _info(name, name, _shipped_set(name), origin=entry["origin"], licence=entry["licence"]),
            kind=PromptKind(entry["kind"]) if "kind" in entry else None,
        )
        for name, entry in _index().items()
    ]
    uploads = [
        _info(
            _UPLOAD + upload.digest,
            upload.name,
            _uploaded_set(ws, upload.digest),
            origin="uploaded",
            licence="the uploader's",
        )
        for upload in ws.store.uploads()
    ]
    return (*shipped, *uploads)


def resolve_prompts(ws: Workspace, reference: str, *, limit: int | None = None) -> PromptSet:
    """The prompt set a reference names.

    Args:
        ws: The workspace.
        reference: A shipped name such as ``calibration``, the path of a ``.jsonl`` or ``.txt``
            file, or ``upload:DIGEST``.
        limit: Take the first ``limit`` prompts; ``None`` takes all.

    Raises:
        PromptError: If there is no such set, it cannot be read, or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise PromptError(f"limit must be at least 1 prompt; got {limit}.")
    if reference.startswith(_UPLOAD):
        return _uploaded_set(ws, reference.removeprefix(_UPLOAD)).first(limit)
    if reference in _index():
        return _shipped_set(reference).first(limit)
    return _local_set(ws, reference).first(limit)


def shipped_of_kind(kind: PromptKind) -> PromptSet:
    """The shipped evaluation set whose texts are all of one kind.

    Raises:
        PromptError: If none is shipped.
    """
    for name, entry in _index().items():
        if entry.get("kind") == kind:
            return _shipped_set(name)
    raise PromptError(f"A prompt set of kind {kind} must be shipped in {PROMPT_FOLDER.name}; there is none.")


def add_upload(ws: Workspace, filename: str, data: bytes) -> PromptSetInfo:
    """Check and keep an uploaded file; the same bytes again are the same set.

    Raises:
        PromptError: If the file cannot be read as prompts or is outside the limits.
    """
    name = PurePath(filename.replace("\\", "/")).name[-_NAME_LIMIT:]
    prompts = read_prompts(name, data)
    upload = ws.store.put_upload(name, data)
    found = PromptSet(name=upload.name, role=PromptRole.USER, prompts=prompts)
    return _info(_UPLOAD + upload.digest, upload.name, found, origin="uploaded", licence="the uploader's")


def _info(reference: str, name: str, prompts: PromptSet, *, origin: str, licence: str) -> PromptSetInfo:
    return PromptSetInfo(
        reference=reference,
        name=name,
        role=prompts.role,
        count=len(prompts.prompts),
        characters=sum(len(prompt.text) + len(prompt.completion) for prompt in prompts.prompts),
        origin=origin,
        licence=licence,
    )


def _index() -> dict[str, dict[str, str]]:
    path = PROMPT_FOLDER / "index.json"
    if not path.is_file():
        return {}
    entries: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def _shipped_set(name: str) -> PromptSet:
    entry = _index()[name]
    data = (PROMPT_FOLDER / entry["file"]).read_bytes()
    return PromptSet(name=name, role=PromptRole(entry["role"]), prompts=read_prompts(entry["file"], data))


def _uploaded_set(ws: Workspace, digest: str) -> PromptSet:
    data = ws.store.get_upload(digest)
    name = next((upload.name for upload in ws.store.uploads() if upload.digest == digest), "")
    if data is None:
        raise PromptError(f"An uploaded prompt set must be in this store; got {digest[:12]!r}. Upload the file again.")
    return PromptSet(name=name, role=PromptRole.USER, prompts=read_prompts(name, data))


def _local_set(ws: Workspace, reference: str) -> PromptSet:
    path = Path(reference).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        names = ", ".join(_index())
        raise PromptError(f"Prompts are one of {names}, or a .jsonl or .txt file; got {reference!r}.")
    if not is_allowed(path, ws.settings.model_roots):
        raise PromptError(
            f"Prompt files must lie in a folder that KVTUNER_MODEL_ROOTS allows; got {reference!r}. Upload it instead."
        )
    return PromptSet(name=path.name, role=PromptRole.USER, prompts=_read_file(path))


def _read_file(path: Path) -> tuple[Prompt, ...]:
    return read_prompts(path.name, read_limited(path, MAX_BYTES, what="prompt file"))
