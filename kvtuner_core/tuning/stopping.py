"""Early stopping of policies that another one already beats for certain; `domain.stopping` has the rule.

A policy's bar is the smallest loss, measured to the end, of the policies with no more effective bits
that were scored in the rounds before its own. A policy of the same round is no bar, so that what is
stopped does not depend on how many are scored at once. A stopped one is no bar either: what beats it
has a smaller loss.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import StoppingScorer
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.errors import InputError

ROUND = 16
"""Policies of a round at most: of a solver that asks for all of its policies at once the first have no bar."""


def check_bounded(objective: Objective) -> None:
    """Raise `InputError` for an objective of which some prompts say nothing about the whole."""
    if not objective.bounded:
        names = ", ".join(item for item in Objective if item.bounded)
        raise InputError(
            f"Stopping early needs an objective that prompts only add to ({names}); got {objective}. "
            "Leave out --stop-early, or choose one of them."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A score that was stopped.

    Attributes:
        partial: What was seen.
        estimate: What the loss may be, for the strategy: see `PartialScore.estimate`.
        dominated_by: Which of the scores that were asked for beats it, from 0.
    """

    partial: PartialScore
    estimate: float
    dominated_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    order: int
    bits: float
    loss: float
    score: PolicyScore


class StoppingRounds:
    """Scores policies in rounds, and each only as long as it may still be on the front.

    Args:
        scorer: Scores policies on the calibration prompts.
        geometry: Cache geometry per layer.
        objective: What is minimised beside effective bits.

    Raises:
        InputError: If the objective is not bounded.
    """

    def __init__(self, scorer: StoppingScorer, geometry: tuple[LayerGeometry, ...], objective: Objective) -> None:
        check_bounded(objective)
        self._scorer = scorer
        self._geometry = geometry
        self._objective = objective
        self._bars: list[_Bar] = []
        self._asked = 0

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore | Unfinished, None, None]:
        """Yield what became of each policy, in order; all policies of all calls must be different."""
        for start in range(0, len(policies), ROUND):
            yield from self._round(policies[start : start + ROUND])

    def _round(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore | Unfinished, None, None]:
        bits = [effective_bits(policy, self._geometry) for policy in policies]
        bars = [self._bar(own) for own in bits]
        losses = [math.inf if bar is None else bar.loss for bar in bars]
        with closing(self._scorer.score_until(policies, losses)) as scores:
            for own, bar, score in zip(bits, bars, scores, strict=True):
                yield self._taken(own, bar, score)

    def _taken(self, bits: float, bar: _Bar | None, score: PolicyScore | PartialScore) -> PolicyScore | Unfinished:
        order, self._asked = self._asked, self._asked + 1
        if isinstance(score, PolicyScore):
            self._bars.append(_Bar(order=order, bits=bits, loss=score.loss(self._objective), score=score))
            return score
        if bar is None:
            raise InputError("Only a policy with a bar may be stopped; got one without. Score it to the end.")
        return Unfinished(partial=score, estimate=score.estimate(bar.score), dominated_by=bar.order)

    def _bar(self, bits: float) -> _Bar | None:
        """The best of those that are no wider; the first of equals."""
        return min((bar for bar in self._bars if bar.bits <= bits), key=lambda bar: bar.loss, default=None)
