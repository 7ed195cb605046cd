"""Models: which there are, their geometry, and what their cache costs."""

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from kvtuner_core.domain.memory import FULL_BYTES, bytes_per_token, cache_bytes, effective_bits
from kvtuner_core.domain.model import BUNDLED_MODEL, ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.runs import Progress, RunKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import InspectTask, ModelReport
from kvtuner_core.errors import InputError
from kvtuner_core.runtime.references import BUNDLED_HINT, bundled_model_path, resolve_reference
from kvtuner_core.services.model_files import model_signature
from kvtuner_core.services.results import demo_study
from kvtuner_core.services.work import Cancelled, answer_of, never, new_record, start
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model that can be offered.

    Attributes:
        reference: What a `ModelSpec` takes.
        name: Readable name.
        available: Whether it is on this machine.
        hint: What brings it where it is not, else where it comes from.
    """

    reference: str
    name: str
    available: bool
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """What a uniform cache costs.

    Attributes:
        name: The pair, such as ``K4V4``.
        effective_bits: Bits per cached scalar with scales and offsets; windows left out.
        bytes: Of the whole cache at the batch and context asked for, windows and sinks included.
        bytes_per_token: Of one more token of one sequence.
    """

    name: str
    effective_bits: float
    bytes: int
    bytes_per_token: float


def list_models(ws: Workspace) -> tuple[ModelChoice, ...]:
    """The bundled model, those loaded before, and folders and ``.gguf`` files in the allowed roots."""
    bundled = bundled_model_path() is not None
    hint = "comes with the project" if bundled else f"not installed; bring it with: {BUNDLED_HINT}"
    choices = {
        BUNDLED_MODEL: ModelChoice(
            reference=BUNDLED_MODEL, name="SmolLM2-135M-Instruct (bundled)", available=bundled, hint=hint
        )
    }
    for reference in _used_before(ws):
        present = model_signature(reference, roots=ws.settings.model_roots) is not None
        hint = "used before" if present else "used before; its files are not on this machine now"
        choices.setdefault(
            reference, ModelChoice(reference=reference, name=Path(reference).name, available=present, hint=hint)
        )
    for path in _root_models(ws.settings.model_roots or ()):
        choices.setdefault(
            str(path), ModelChoice(reference=str(path), name=path.name, available=True, hint=f"in {path.parent}")
        )
    return tuple(choices.values())


def _used_before(ws: Workspace) -> list[str]:
    """References of the stored runs' models, newest first."""
    found: list[str] = []
    for record in ws.store.runs():
        spec = json.loads(record.spec)
        for part in ("sweep", "model"):
            spec = spec.get(part, spec)
        found.append(str(spec["reference"]))
    return found


def _root_models(roots: tuple[Path, ...]) -> list[Path]:
    found: list[Path] = []
    for root in roots:
        if (root / "config.json").is_file():
            found.append(root)
        try:
            children = sorted(root.iterdir())
        except OSError:
            continue
        found.extend(path for path in children if path.suffix == ".gguf" or (path / "config.json").is_file())
    return found


def describe(ws: Workspace, reference: str) -> ModelInfo:
    """Identity and geometry of a model; weights are not read, so the fingerprint may be empty.

    Raises:
        ModelError: If there is no such model, or its cache cannot be quantised.
    """
    known = _known_report(ws, ModelSpec(reference=reference))
    if known is not None:
        return known.info
    demo = demo_study()
    if demo is not None and reference == demo.sweep.model.reference == BUNDLED_MODEL and bundled_model_path():
        # Reading it from the model's own file means importing transformers, which takes seconds.
        return replace(demo.sweep.model, fingerprint="")
    # What is nothing known, or not allowed, is refused here and now.
    resolve_reference(reference, roots=ws.settings.model_roots)
    return ws.compute.describe(reference, version=model_signature(reference, roots=ws.settings.model_roots) or "")


def report(ws: Workspace, spec: ModelSpec) -> ModelReport | None:
    """What was found when the model was last loaded so, or ``None`` if it never was or has changed since."""
    return _known_report(ws, spec)


def inspect(ws: Workspace, spec: ModelSpec, cancelled: Cancelled = never) -> Generator[Progress, None, ModelReport]:
    """Load the model and keep what is found; yields a `Progress` before and after."""
    yield Progress(stage="model", done=0, total=1, message=f"Loading {spec.reference}")
    found = answer_of(ModelReport, ws.compute.run(InspectTask(model=spec), cancelled=cancelled))
    signature = model_signature(spec.reference, roots=ws.settings.model_roots)
    if signature is not None:
        ws.store.put_report(spec.reference, _report_signature(spec, signature), found)
    yield Progress(stage="model", done=1, total=1, message=f"Loaded {found.info.name} on {found.provenance.device}")
    return found


def ensure_report(
    ws: Workspace, spec: ModelSpec, cancelled: Cancelled = never
) -> Generator[Progress, None, ModelReport]:
    """What is known of the model; it is loaded only if it never was, or changed since."""
    known = _known_report(ws, spec)
    return known if known is not None else (yield from inspect(ws, spec, cancelled))


def start_inspection(ws: Workspace, spec: ModelSpec) -> str:
    """Queue `inspect`; returns the run's id."""
    record = new_record(RunKind.INSPECTION, title=f"Load {spec.reference}", spec=to_json(spec))
    return start(ws, record, lambda _run, cancelled: inspect(ws, spec, cancelled))


def _report_signature(spec: ModelSpec, signature: str) -> str:
    return f"{spec.device}|{spec.dtype}|{signature}"


def _known_report(ws: Workspace, spec: ModelSpec) -> ModelReport | None:
    signature = model_signature(spec.reference, roots=ws.settings.model_roots)
    if signature is None:
        return None
    return ws.store.get_report(spec.reference, _report_signature(spec, signature))


def memory_rows(
    info: ModelInfo, scheme: QuantScheme, *, batch: int, context: int, bits: tuple[int, ...] = (16, 8, 4, 2)
) -> tuple[MemoryRow, ...]:
    """What the cache costs with keys and values at each of ``bits``.

    Args:
        info: The model's geometry.
        scheme: Grouping; its scales and offsets are counted.
        batch: Number of sequences.
        context: Tokens of each sequence.
        bits: Bit widths, in the order of the rows.

    Raises:
        InputError: If ``batch`` or ``context`` is below 1.
        SchemeError: If the scheme does not fit the model.
    """
    if batch < 1 or context < 1:
        raise InputError(f"batch and context must be at least 1; got {batch} and {context}.")
    rows = []
    for width in bits:
        pair = PrecisionPair(key_bits=width, value_bits=width)
        policy = KVPolicy.uniform(pair, layers=len(info.layers), scheme=scheme)
        rows.append(
            MemoryRow(
                name=pair.name,
                effective_bits=effective_bits(policy, info.layers),
                bytes=cache_bytes(policy, info.layers, tokens=context, batch=batch, full_bytes=FULL_BYTES),
                bytes_per_token=bytes_per_token(policy, info.layers),
            )
        )
    return tuple(rows)
