"""Content addresses: a key names exactly what changes a number, and nothing else.

In a key: the model's fingerprint, the kind of device and the dtype (they round differently), the
texts (their digest, not their name), how the texts are cut, the scheme, the bits of every layer,
and the metric version. The seed is part of a score's key, because it draws the bootstrap interval,
and not of a profile's, which has no interval.

Not in a key, but stored beside the number as provenance: the device's name, library versions, the
time, and how long it took. Names of models, prompt sets and files never matter.

Two ways to write the same thing give one key: bits per head that are all alike are the layer's
pair, and where nothing is quantised the scheme is left out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvtuner_core.domain.metrics import METRIC_VERSION
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.questions import QUESTION_VERSION, Question
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.domain.scores import SCORES_VERSION
from kvtuner_core.domain.tasks import EvaluationSpec, ModelReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a stored number is a measurement of.

    Attributes:
        text: Canonical JSON (sorted names, no spaces) of everything that changes the number.
    """

    text: str

    @classmethod
    def of(cls, parts: Mapping[str, object]) -> "Identity":
        """The identity that ``parts``, plain JSON values by name, describe."""
        return cls(text=json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False))

    @property
    def key(self) -> str:
        """SHA-256 of ``text`` in hexadecimal: the content address."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionIdentity:
    """What all numbers of one session depend on; its methods give the identity of each.

    Attributes:
        fingerprint: Of the model's geometry and weights.
        device_type: ``cpu`` or ``cuda``.
        dtype: The model's dtype.
        prompts_digest: `PromptSet.digest` of the set, already limited.
        prefix_tokens: Tokens of each text that are read first and quantised.
        suffix_tokens: Tokens of each text that are scored.
        scheme: Grouping and rounding, for profiles; a policy brings its own.
        seed: Seed of the bootstrap interval.
    """

    fingerprint: str
    device_type: str
    dtype: str
    prompts_digest: str
    prefix_tokens: int
    suffix_tokens: int
    scheme: QuantScheme
    seed: int = 0

    @classmethod
    def of(cls, report: ModelReport, evaluation: EvaluationSpec) -> "SessionIdentity":
        """The session of ``evaluation`` on the model and device that ``report`` describes."""
        return cls(
            fingerprint=report.info.fingerprint,
            device_type=report.provenance.device_type,
            dtype=report.provenance.dtype,
            prompts_digest=evaluation.prompts.digest,
            prefix_tokens=evaluation.prefix_tokens,
            suffix_tokens=evaluation.suffix_tokens,
            scheme=evaluation.scheme,
            seed=evaluation.seed,
        )

    def score(self, policy: KVPolicy) -> Identity:
        """Identity of one policy's score."""
        parts: dict[str, object] = {
            "kind": "score",
            "scheme": None if policy.is_full else _scheme(policy.scheme),
            "layers": [_layer(layer) for layer in policy.layers],
            "seed": self.seed,
        }
        return Identity.of(self._parts() | parts)

    def partial(self, policy: KVPolicy, objective: Objective) -> Identity:
        """Identity of what was seen of one policy, for one objective, until its evaluation was stopped."""
        parts: dict[str, object] = {
            "kind": "partial_score",
            "scheme": None if policy.is_full else _scheme(policy.scheme),
            "layers": [_layer(layer) for layer in policy.layers],
            "objective": str(objective),
        }
        return Identity.of(self._parts() | parts)

    def profile(self, layer: int, pair: PrecisionPair) -> Identity:
        """Identity of the error profile of one layer, counted among those that keep a cache, under one pair."""
        parts: dict[str, object] = {
            "kind": "profile",
            "scheme": None if pair.is_full else _scheme(self.scheme),
            "layer": layer,
            "pair": pair.name,
        }
        return Identity.of(self._parts() | parts)

    def error_scores(self, pairs: Sequence[PrecisionPair]) -> Identity:
        """Identity of gradients times errors of all layers under these pairs; the seed draws their probes."""
        parts: dict[str, object] = {
            "kind": "error_scores",
            "version": SCORES_VERSION,
            "scheme": _scheme(self.scheme),
            "pairs": [pair.name for pair in pairs],
            "seed": self.seed,
        }
        return Identity.of(self._parts() | parts)

    def weight_scores(self) -> Identity:
        """Identity of the norms of all layers' projections and of their gradients."""
        return Identity.of(self._parts() | {"kind": "weight_scores", "version": SCORES_VERSION})

    def _parts(self) -> dict[str, object]:
        return {
            "metric_version": METRIC_VERSION,
            "fingerprint": self.fingerprint,
            "device_type": self.device_type,
            "dtype": self.dtype,
            "prompts": self.prompts_digest,
            "prefix_tokens": self.prefix_tokens,
            "suffix_tokens": self.suffix_tokens,
        }


def reply_identity(report: ModelReport, question: Question, policy: KVPolicy | None) -> Identity:
    """What one policy's reply to one question depends on; no policy and an unquantised one are the same."""
    full = policy is None or policy.is_full
    return Identity.of(
        {
            "kind": "reply",
            "question_version": QUESTION_VERSION,
            "fingerprint": report.info.fingerprint,
            "device_type": report.provenance.device_type,
            "dtype": report.provenance.dtype,
            "question": question.digest,
            "scheme": None if policy is None or full else _scheme(policy.scheme),
            "layers": None if policy is None or full else [_layer(layer) for layer in policy.layers],
        }
    )


def _scheme(scheme: QuantScheme) -> dict[str, object]:
    # What came later is named only where it is used, so that older keys stay.
    later: dict[str, object] = {}
    if scheme.residual_share:
        later["residual_share"] = scheme.residual_share
    if scheme.rotation is not Rotation.NONE:
        later["rotation"] = scheme.rotation.value
    return later | {
        "key_granularity": scheme.key_granularity.value,
        "value_granularity": scheme.value_granularity.value,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "residual_length": scheme.residual_length,
        "sink_length": scheme.sink_length,
        "scale_dtype": scheme.scale_dtype.value,
    }


def _layer(precision: LayerPrecision) -> str:
    names = [pair.name for pair in precision.pairs]
    return names[0] if len(set(names)) == 1 else " ".join(names)
