"""What a policy file says."""

from dataclasses import dataclass

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.model import LayerGeometry, ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model a policy was made for.

    Attributes:
        id: Name or hub id, for people.
        fingerprint: Digest of geometry and weights; empty where the file does not know it.
        layers: Cache geometry per cached layer; empty where the file does not know it.
    """

    id: str
    fingerprint: str = ""
    layers: tuple[LayerGeometry, ...] = ()

    @classmethod
    def of(cls, info: ModelInfo) -> "ModelIdentity":
        """The identity of a loaded model."""
        return cls(id=info.name, fingerprint=info.fingerprint, layers=info.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineEvidence:
    """A uniform policy measured beside the policy: its name, effective bits and KL."""

    name: str
    effective_bits: float
    kl: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why one may trust a policy.

    Attributes:
        objective: What was minimised, in words.
        calibration_prompts: Name and digest of the set the search saw.
        calibration_kl: KL there, nats per token.
        evaluation_prompts: Name and digest of the set it did not see; empty if none.
        evaluation_kl: KL there, or ``None``.
        top1_agreement: Share of unchanged most likely tokens, or ``None``.
        nll_change: Nats per token, or ``None``.
        baselines: Uniform policies on the same evaluation prompts.
    """

    objective: str
    calibration_prompts: tuple[str, str]
    calibration_kl: Interval
    evaluation_prompts: tuple[str, str] = ("", "")
    evaluation_kl: Interval | None = None
    top1_agreement: float | None = None
    nll_change: float | None = None
    baselines: tuple[BaselineEvidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """A policy with the model it fits, its memory, its evidence and its provenance.

    Attributes:
        policy: The policy.
        model: The model it was made for.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: With them; ``None`` where the geometry is unknown.
        bytes_per_token: Of one sequence, windows left out; ``None`` where the geometry is unknown.
        evidence: Measurements, or ``None`` for a policy written by hand or imported.
        provenance: Where the measurements come from, or ``None``.
        origin: Run id, file or tool it came from, as text.
        notes: Free text by name, such as ``budget``.
    """

    policy: KVPolicy
    model: ModelIdentity
    nominal_bits: float
    effective_bits: float | None = None
    bytes_per_token: float | None = None
    evidence: Evidence | None = None
    provenance: Provenance | None = None
    origin: str = ""
    notes: tuple[tuple[str, str], ...] = ()
