"""Early stopping: an unfinished score that already says that a policy is dominated, whatever is left of it.

Where a loss is a mean of numbers that are never below 0, what the prompts seen so far add to it bounds
it from below. A policy whose bound exceeds the loss of another one with no more bits is off the front
for certain: nothing is risked, unlike with a test.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.objective import Objective

SLACK = 1e-6
"""A bound must exceed a bar by this (in the objective's unit): what is left may be below 0 by a rounding error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When policies that are scored together may be left unfinished.

    Attributes:
        objective: One that is `Objective.bounded`.
        bars: For each policy the loss that its lower bound must exceed; infinity to go on to the end.
        telling: How much of the loss each prompt of the set usually has; passes with most of it come
            first. Empty where nothing is known.
    """

    objective: Objective
    bars: tuple[float, ...]
    telling: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialScore:
    """What was seen of a policy until its evaluation was stopped; never a measured value of the policy.

    Attributes:
        objective: Whose losses they are.
        prompts: Index in the set of each prompt seen, in the order of the passes.
        losses: The loss of each of them.
        ends: Number of prompts seen after each pass.
        tokens_per_prompt: Scored suffix tokens of every prompt of the set.
        seconds: Time it took.
    """

    objective: Objective
    prompts: tuple[int, ...]
    losses: tuple[float, ...]
    ends: tuple[int, ...]
    tokens_per_prompt: tuple[int, ...]
    seconds: float = field(default=0.0, compare=False)

    @property
    def left(self) -> int:
        """Prompts that were spared."""
        return len(self.tokens_per_prompt) - len(self.prompts)

    @property
    def bound(self) -> float:
        """The least that the loss over all prompts can be."""
        return self._bound(len(self.prompts))

    def within(self, bar: float) -> "PartialScore | None":
        """The part after whose pass the bound first exceeds ``bar``; ``None`` where it never does."""
        for end in self.ends:
            if self._bound(end) > bar + SLACK:
                passes = self.ends[: self.ends.index(end) + 1]
                return replace(self, prompts=self.prompts[:end], losses=self.losses[:end], ends=passes)
        return None

    def estimate(self, reference: PolicyScore) -> float:
        """The loss over all prompts if the rest of them has the share that it has in ``reference``.

        A ratio estimate over the same prompts (common random numbers), never below `bound`; the plain
        mean of the prompts seen where the reference lost nothing on them.
        """
        weights = prompt_weights(self.objective, self.tokens_per_prompt)
        known = reference.measured(self.objective).per_prompt
        parts = [weight * loss for weight, loss in zip(weights, known, strict=True)]
        seen, total = sum(parts[index] for index in self.prompts), sum(parts)
        if not (0 < seen <= total < math.inf):
            seen, total = sum(weights[index] for index in self.prompts), sum(weights)
        return self.bound * max(1.0, total / seen)

    def _bound(self, end: int) -> float:
        weights = prompt_weights(self.objective, self.tokens_per_prompt)
        seen = zip(self.prompts[:end], self.losses[:end], strict=True)
        return sum(weights[index] * loss for index, loss in seen) / sum(weights)


def prompt_weights(objective: Objective, tokens: Sequence[int]) -> tuple[int, ...]:
    """What each prompt counts in an objective's mean: its scored ``tokens``, or one where prompts are counted."""
    return (1,) * len(tokens) if objective is Objective.ANSWER_ERROR else tuple(tokens)


def telling(scores: Iterable[PolicyScore], objective: Objective) -> tuple[float, ...]:
    """The share of an objective's loss that each prompt has, the mean over some policies; empty where none lost any."""
    shares = []
    for score in scores:
        weights = prompt_weights(objective, score.tokens_per_prompt)
        known = score.measured(objective).per_prompt
        parts = [weight * loss for weight, loss in zip(weights, known, strict=True)]
        if 0 < sum(parts) < math.inf:
            shares.append([part / sum(parts) for part in parts])
    return tuple(sum(column) / len(shares) for column in zip(*shares, strict=True))
