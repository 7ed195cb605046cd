"""Measured errors and qualities."""

import math
from dataclasses import dataclass, field

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.errors import InputError

METRIC_VERSION = 1
"""Raised whenever a definition below changes, so that old stored numbers are not reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with a 95% bootstrap interval over prompts.

    Attributes:
        mean: Mean over all suffix tokens of all prompts.
        low: 2.5% quantile of the bootstrap means.
        high: 97.5% quantile.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorProfile:
    """Errors of one layer under one pair, everything else in full precision (METHOD: KVTuner section 4).

    Attributes:
        layer: Index among the layers that keep a cache, from 0.
        pair: The bits under test.
        key_error: Relative error of the keys, ‖K-K'‖ / ‖K‖ per prompt and head, mean.
        value_error: Relative error of the values, likewise.
        score_error: Absolute error of the attention scores, Σ|a-a'| per prompt, head and query
            (0 to 2), mean.
        output_error: Relative error of the attention output, ‖o-o'‖ / ‖o‖ per prompt, head and
            query, mean.
        kl: End-to-end mean KL(full || quantised) in nats per token with only this layer quantised.
        local_seconds: Time that the errors above took, 0 where it is not known.
        kl_seconds: Time that the KL took, likewise.
    """

    layer: int
    pair: PrecisionPair
    key_error: float
    value_error: float
    score_error: float
    output_error: float
    kl: float
    local_seconds: float = field(default=0.0, compare=False)
    kl_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One objective of a policy beside its mean KL.

    Attributes:
        objective: Which one.
        interval: Over all prompts, with a 95% bootstrap interval over prompts.
        per_prompt: Of each prompt alone, in the set's order.
    """

    objective: Objective
    interval: Interval
    per_prompt: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """Quality of one policy on one prompt set, by teacher forcing.

    Attributes:
        kl: KL(full || quantised) in nats per suffix token.
        top1_agreement: Share of suffix tokens whose most likely next token is unchanged, 0 to 1.
        nll_change: Mean change of the negative log-likelihood of the text, in nats per token.
        kl_per_prompt: Mean KL of each prompt, in the set's order.
        tokens_per_prompt: Scored suffix tokens of each prompt.
        cache_bytes: Bytes the packed cache holds at the end of the longest prompt, batch 1,
            in the model's own dtype where not quantised.
        seconds: Time the evaluation took.
        others: Objectives beside the mean KL; a score from before they were kept has none.
    """

    kl: Interval
    top1_agreement: float
    nll_change: float
    kl_per_prompt: tuple[float, ...]
    tokens_per_prompt: tuple[int, ...]
    cache_bytes: int
    seconds: float
    others: tuple[Measured, ...] = ()

    @property
    def tokens(self) -> int:
        """Scored suffix tokens of all prompts."""
        return sum(self.tokens_per_prompt)

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.tokens_per_prompt)

    def measures(self, objective: Objective) -> bool:
        """Whether ``objective`` was measured."""
        return objective is Objective.MEAN_KL or any(item.objective is objective for item in self.others)

    def measured(self, objective: Objective) -> Measured:
        """One objective, over all prompts and per prompt.

        Raises:
            InputError: If the score does not hold it.
        """
        if objective is Objective.MEAN_KL:
            return Measured(objective=objective, interval=self.kl, per_prompt=self.kl_per_prompt)
        for item in self.others:
            if item.objective is objective:
                return item
        raise InputError(f"This score was taken before {objective} was measured. Run the search again.")

    def interval(self, objective: Objective) -> Interval:
        """One objective over all prompts; see `measured`."""
        return self.measured(objective).interval

    def loss(self, objective: Objective) -> float:
        """What is minimised of it: `Objective.loss` of its mean, infinity where that is not a number."""
        loss = objective.loss(self.interval(objective).mean)
        return math.inf if math.isnan(loss) else loss
