"""What a search minimises beside bits: named measures of a policy, each with its unit and direction."""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Direction(StrEnum):
    """Which way an objective is better."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traits:
    label: str
    unit: str
    definition: str
    direction: Direction = Direction.LOWER
    worst: float = 10.0
    bounded: bool = False


class Objective(StrEnum):
    """A measure of how far a policy moves a model's predictions.

    Attributes:
        MEAN_KL: Mean KL(full || quantised) over the suffix tokens.
        P95_KL: The KL that 95% of the suffix tokens stay within: what the worst tokens suffer.
        NLL_CHANGE: Mean change of the text's negative log-likelihood; noisier than the mean KL,
            whose expectation it is where the model is right, and it may be negative.
        TOP1_DISAGREEMENT: Share of suffix tokens whose most likely next token changes.
        ANSWER_ERROR: Share of prompts whose completion greedy decoding would not give exactly: on
            recall prompts 1 - exact recall. It is coarse, one bit a prompt, and full precision has
            one, too; `NLL_CHANGE` on the same prompts is the smooth measure of the same answers.
    """

    MEAN_KL = "mean-kl"
    P95_KL = "p95-kl"
    NLL_CHANGE = "nll-change"
    TOP1_DISAGREEMENT = "top1-disagreement"
    ANSWER_ERROR = "answer-error"

    @property
    def label(self) -> str:
        """Short name for axes and tables, without the unit."""
        return _TRAITS[self].label

    @property
    def unit(self) -> str:
        """What the number counts."""
        return _TRAITS[self].unit

    @property
    def with_unit(self) -> str:
        """Label with its unit."""
        return f"{self.label} ({self.unit})"

    @property
    def definition(self) -> str:
        """What it is, in words that a policy file can carry."""
        return _TRAITS[self].definition

    @property
    def direction(self) -> Direction:
        """Which way it is better."""
        return _TRAITS[self].direction

    @property
    def worst(self) -> float:
        """The loss at and above which a policy dominates nothing, in the objective's unit."""
        return _TRAITS[self].worst

    @property
    def bounded(self) -> bool:
        """Whether it is a mean over prompts of numbers from 0 up, so that some of them bound it from below."""
        return _TRAITS[self].bounded

    def loss(self, value: float) -> float:
        """``value`` as what is minimised: itself, or its distance from 1 where higher is better."""
        return value if self.direction is Direction.LOWER else 1.0 - value


_TRAITS = MappingProxyType(
    {
        Objective.MEAN_KL: _Traits(
            label="KL",
            unit="nats per token",
            definition="mean KL(full precision || quantised cache), nats per token, teacher forcing",
            bounded=True,
        ),
        Objective.P95_KL: _Traits(
            label="95th percentile of token KL",
            unit="nats",
            definition="95th percentile over tokens of KL(full precision || quantised cache), nats, teacher forcing",
        ),
        Objective.NLL_CHANGE: _Traits(
            label="NLL change",
            unit="nats per token",
            definition="mean change of the text's negative log-likelihood, nats per token, teacher forcing",
        ),
        Objective.TOP1_DISAGREEMENT: _Traits(
            label="top-1 disagreement",
            unit="share of tokens",
            definition="share of tokens whose most likely next token changes, teacher forcing",
            worst=1.0,
            bounded=True,
        ),
        Objective.ANSWER_ERROR: _Traits(
            label="answer error",
            unit="share of prompts",
            definition="share of prompts whose scored text greedy decoding from the quantised cache does not give",
            worst=1.0,
            bounded=True,
        ),
    }
)
