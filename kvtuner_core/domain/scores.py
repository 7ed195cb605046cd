"""Sensitivities beside a sweep's errors: what the model's gradients and weights say of its layers."""

from dataclasses import dataclass
from enum import StrEnum

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair

SCORES_VERSION = 1
"""Raised whenever a definition below changes, so that old stored scores are not reused."""


class ScoreName(StrEnum):
    """A way to say how sensitive a layer is.

    Attributes:
        KL: Isolated KL, as NVIDIA ModelOpt measures it; what the others are compared with.
        FISHER_ERROR: The KL to second order, from gradients and measured errors.
        GRADIENT_ERROR: The change of the loss to first order, from the same.
        OUTPUT_ERROR: Isolated error of the attention output, KVTuner's.
        GRADIENT_NORM: Norm of the loss' gradient of W_k and W_v, KVmix's; no error in it.
        WEIGHT_NORM: Norm of W_k and W_v; neither data nor error in it.
    """

    KL = "kl"
    FISHER_ERROR = "fisher_error"
    GRADIENT_ERROR = "gradient_error"
    OUTPUT_ERROR = "output_error"
    GRADIENT_NORM = "gradient_norm"
    WEIGHT_NORM = "weight_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """What gradients say of one layer under one pair, everything else in full precision.

    Attributes:
        layer: Index among the layers that keep a cache, from 0.
        pair: The bits under test.
        gradient_error: |<dL/dK, K'-K> + <dL/dV, V'-V>| over the suffix's mean negative
            log-likelihood L, mean over prompts; nats per token.
        fisher_error: KL(full || quantised) to second order, the errors of different tokens and heads
            taken as uncorrelated; nats per token.
    """

    layer: int
    pair: PrecisionPair
    gradient_error: float
    fisher_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorScores:
    """Gradients times measured errors, of all layers and pairs.

    Attributes:
        pairs: One per layer and pair, layer by layer.
        probes: Random vectors per prompt that the Fisher estimate is a mean over.
        gradient_seconds: Forward pass, one backward pass, and the products.
        fisher_seconds: Forward pass, a backward pass per probe, and the products.
    """

    pairs: tuple[PairScores, ...]
    probes: int
    gradient_seconds: float
    fisher_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """Norms of one layer's projections, keys and values apart.

    Attributes:
        layer: Index among the layers that keep a cache, from 0.
        key_gradient: Mean over prompts of ||dL/dW_k||, L the mean next-token cross-entropy in nats.
        value_gradient: Likewise of W_v.
        key_weight: ||W_k||.
        value_weight: ||W_v||.
    """

    layer: int
    key_gradient: float
    value_gradient: float
    key_weight: float
    value_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScores:
    """Norms of the projections that make keys and values.

    Attributes:
        layers: One per cached layer; empty where W_k and W_v cannot be told apart.
        absent: Why it is empty, else empty.
        tokens: Tokens of each prompt that the loss was taken over, at most.
        gradient_seconds: One forward and one backward pass over these tokens.
        weight_seconds: Reading the weights.
    """

    layers: tuple[LayerNorms, ...]
    absent: str
    tokens: int
    gradient_seconds: float
    weight_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePick:
    """The policy that a score would choose within a bound on bits, scored truly.

    Attributes:
        score: Which score chose.
        max_bits: The bound on effective bits.
        policy: What it chose.
        effective_bits: Of the policy; at most ``max_bits``.
        calibration: Score on the calibration prompts, which the choice was made on.
        evaluation: Score on evaluation prompts, where a search had some.
    """

    score: ScoreName
    max_bits: float
    policy: KVPolicy
    effective_bits: float
    calibration: PolicyScore
    evaluation: PolicyScore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepScores:
    """All that a sweep knows of its layers beside their errors and isolated KLs.

    Attributes:
        errors: Gradients times errors.
        weights: Norms of the projections.
        picks: What each score would choose, where it was asked for; score by score, bound by bound.
    """

    errors: ErrorScores
    weights: WeightScores
    picks: tuple[ScorePick, ...] = ()
