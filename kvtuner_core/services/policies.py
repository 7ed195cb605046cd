"""Policies: as documents with their evidence, as files, and as caches of a program's own model."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvtuner_core.domain.document import BaselineEvidence, Evidence, ModelIdentity, PolicyDocument
from kvtuner_core.domain.memory import bytes_per_token, check_layers, effective_bits
from kvtuner_core.domain.model import LayerGeometry, ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange import (
    MAX_FILE_BYTES,
    document_from_json,
    document_to_json,
    from_kvtuner_yaml,
    to_kvtuner_yaml,
)
from kvtuner_core.services.files import read_limited, write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvtuner_core.runtime.cache import QuantizedKVCache

E = TypeVar("E", bound=StrEnum)

FULL_NAME = "full"
"""Name of no policy at all: the model's own cache."""


class Match(StrEnum):
    """How closely a model must be the one a policy was made for.

    ``WEIGHTS``: the same weights, where the file knows them. ``GEOMETRY``: the same cache shapes.
    """

    WEIGHTS = "weights"
    GEOMETRY = "geometry"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A policy file, checked.

    Attributes:
        document: All it says.
    """

    document: PolicyDocument

    @property
    def policy(self) -> KVPolicy:
        """The bits of each layer and the scheme."""
        return self.document.policy

    def build_cache(
        self,
        model: "PreTrainedModel",
        *,
        prefill: PrefillMode | str = PrefillMode.FULL,
        match: Match | str = Match.WEIGHTS,
    ) -> "QuantizedKVCache":
        """A new cache for ``model.generate(..., past_key_values=cache)``.

        Args:
            model: A loaded transformers model.
            prefill: Whether prompt tokens attend to full precision (default) or to what is stored.
            match: ``weights`` to refuse a model with other weights, ``geometry`` to accept any
                with the same cache shapes.

        Raises:
            PolicyError: If the policy was not made for this model.
            ModelError: If the model has no standard cache.
        """
        from kvtuner_core.runtime.cache import build_cache
        from kvtuner_core.runtime.geometry import fingerprint, layer_geometry

        rule = _choice(Match, match, "match")
        layers = layer_geometry(model.config)
        found = fingerprint(model) if rule is Match.WEIGHTS and self.document.model.fingerprint else ""
        name = str(getattr(model, "name_or_path", "")) or type(model).__name__
        check_match(self.document, ModelIdentity(id=name, fingerprint=found, layers=layers), rule)
        return build_cache(self.policy, model, prefill=_choice(PrefillMode, prefill, "prefill"))


def load_policy(path: str | Path) -> LoadedPolicy:
    """Read a ``policy.json``.

    Raises:
        InputError: If there is no such file.
        PolicyError: If it is not a valid policy; one line with the rule, the value and the way out.
    """
    data = read_limited(Path(path).expanduser(), MAX_FILE_BYTES, what="policy file")
    return LoadedPolicy(document=document_from_json(data))


def check_match(document: PolicyDocument, model: ModelIdentity, match: Match = Match.WEIGHTS) -> None:
    """Raise `PolicyError` unless the policy may be used with the model.

    Args:
        document: The policy; a fingerprint or geometry that it does not know is not compared.
        model: The model at hand, with its layers.
        match: How close it must be.
    """
    made_for = document.model
    if made_for.layers and made_for.layers != model.layers:
        raise PolicyError(
            f"A policy fits models of its own cache shapes ({_shapes(made_for.layers)}); {model.id} has "
            f"{_shapes(model.layers)}. Use a policy made for this model."
        )
    check_layers(document.policy, model.layers)
    if match is Match.GEOMETRY or not made_for.fingerprint or not model.fingerprint:
        return
    if made_for.fingerprint != model.fingerprint:
        raise PolicyError(
            f"A policy is for the weights it was measured on ({made_for.id}, {made_for.fingerprint[:12]}); "
            f"{model.id} has {model.fingerprint[:12]}. Make one for this model, or allow it with match geometry."
        )


def _shapes(layers: tuple[LayerGeometry, ...]) -> str:
    kinds = dict.fromkeys((layer.kv_heads, layer.key_dim, layer.value_dim, layer.sliding_window) for layer in layers)
    parts = []
    for heads, key, value, window in list(kinds)[:3]:
        dims = f"{key}" if key == value else f"{key}/{value}"
        parts.append(f"{heads} KV heads of {dims}" + (f" with a window of {window}" if window else ""))
    return f"{len(layers)} layers, " + " and ".join(parts) + (" and more" if len(kinds) > 3 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """A policy somebody named: a file's, the same pair everywhere, or none.

    Attributes:
        document: The file's, or ``None``.
        pair: The pair of every layer, or ``None``.
        scheme: Scheme of a uniform policy.
    """

    document: PolicyDocument | None = None
    pair: PrecisionPair | None = None
    scheme: QuantScheme | None = None

    def for_model(self, info: ModelInfo, match: Match = Match.WEIGHTS) -> KVPolicy | None:
        """The policy for a model, or ``None`` for the model's own cache.

        Raises:
            PolicyError: If the file's policy was not made for it.
            SchemeError: If the scheme does not fit the model.
        """
        if self.document is not None:
            check_match(self.document, ModelIdentity.of(info), match)
            return self.document.policy
        if self.pair is None:
            return None
        policy = KVPolicy.uniform(self.pair, layers=len(info.layers), scheme=self.scheme or QuantScheme.per_token())
        check_layers(policy, info.layers)
        return policy


def choose_policy(reference: str, scheme: QuantScheme | None = None) -> PolicyChoice:
    """What ``--policy`` names: ``K4V2`` or ``KV4`` with a scheme, ``full``, or a policy file.

    Raises:
        InputError: If it is neither a name nor a readable file.
        PolicyError: If the file is not valid, or its scheme is of another kind than ``scheme``.
    """
    if reference.strip().lower() == FULL_NAME:
        return PolicyChoice()
    pair = _pair(reference)
    if pair is not None:
        return PolicyChoice(pair=pair, scheme=scheme)
    document = load_policy(reference).document
    if scheme is not None and scheme.name != document.policy.scheme.name:
        raise PolicyError(
            f"A policy file has its own scheme ({document.policy.scheme.name}); got scheme {scheme.name}. Leave it out."
        )
    return PolicyChoice(document=document)


def _pair(reference: str) -> PrecisionPair | None:
    if "." in reference or "/" in reference:
        return None
    try:
        return PrecisionPair.parse(reference)
    except PolicyError:
        if Path(reference).is_file():
            return None
        raise


def document(result: SearchResult, candidate: Candidate, *, notes: tuple[tuple[str, str], ...] = ()) -> PolicyDocument:
    """A candidate of a search with its model, memory, evidence and provenance.

    Args:
        result: The search.
        candidate: One of its front or baselines.
        notes: Free text by name, such as the budget it was picked for.
    """
    model = result.sweep.model
    evaluated = candidate.evaluation
    return PolicyDocument(
        policy=candidate.policy,
        model=ModelIdentity.of(model),
        nominal_bits=candidate.nominal_bits,
        effective_bits=candidate.effective_bits,
        bytes_per_token=bytes_per_token(candidate.policy, model.layers),
        evidence=Evidence(
            objective=result.spec.objective.definition,
            calibration_prompts=(result.spec.sweep.prompts, result.sweep.prompts_digest),
            calibration_kl=candidate.calibration.kl,
            evaluation_prompts=(result.spec.evaluation_prompts, result.evaluation_digest) if evaluated else ("", ""),
            evaluation_kl=evaluated.kl if evaluated else None,
            top1_agreement=evaluated.top1_agreement if evaluated else None,
            nll_change=evaluated.nll_change if evaluated else None,
            baselines=tuple(
                BaselineEvidence(name=item.policy.name, effective_bits=item.effective_bits, kl=item.evaluation.kl)
                for item in result.baselines
                if item.evaluation is not None
            ),
        ),
        provenance=result.provenance,
        origin=f"search run {result.run}",
        notes=notes,
    )


def plain_document(policy: KVPolicy, model: ModelInfo | None = None, *, origin: str = "") -> PolicyDocument:
    """A policy without evidence, for one model, or for any with as many layers."""
    layers = model.layers if model else ()
    return PolicyDocument(
        policy=policy,
        model=ModelIdentity.of(model) if model else ModelIdentity(id=""),
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, layers) if layers else None,
        bytes_per_token=bytes_per_token(policy, layers) if layers else None,
        origin=origin,
    )


def policy_json(document: PolicyDocument) -> str:
    """The text of a ``policy.json``."""
    return document_to_json(document)


def save_policy(document: PolicyDocument, path: str | Path) -> None:
    """Write a ``policy.json``, whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    write_atomically(Path(path).expanduser(), policy_json(document).encode())


class FileFormat(StrEnum):
    """Formats of other projects' policy files."""

    KVTUNER_YAML = "kvtuner-yaml"


def export_policy(policy: KVPolicy, *, to: FileFormat | str) -> str:
    """A policy as the text of another project's file; what that format cannot say is left out.

    Raises:
        PolicyError: If the format is unknown.
    """
    _choice(FileFormat, to, "to")
    return to_kvtuner_yaml(policy)


def import_policy(path: str | Path, *, source: FileFormat | str, scheme: QuantScheme) -> PolicyDocument:
    """A policy from another project's file.

    Args:
        path: The file.
        source: Its format.
        scheme: Grouping and rounding, which ``kvtuner-yaml`` does not say.

    Raises:
        InputError: If there is no such file.
        PolicyError: If the format is unknown, or the file is not valid.
    """
    _choice(FileFormat, source, "from")
    file = Path(path).expanduser()
    policy = from_kvtuner_yaml(read_limited(file, MAX_FILE_BYTES, what="policy file"), scheme=scheme)
    return plain_document(policy, origin=f"imported from {file.name}")


def _choice(kind: type[E], value: str, name: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        names = " or ".join(str(member) for member in kind)
        raise PolicyError(f"{name} must be {names}; got {value!r}.") from error
