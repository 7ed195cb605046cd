"""The search that a surrogate guides: solve it exactly, evaluate its front, refit, solve again.

The first evaluations, half of them but no more than fifty, are spread along the additive front:
fewer leave gaps, which later ones only fill where the calibration prompts were kind. Each later
batch is the part of the refitted front that promises to add most to what is known. Where that front
holds nothing new, it has stopped moving, and the evaluations that are left go to fronts of models
drawn from the posterior: plausible given what was seen, and different where little was.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.study import Candidate
from kvtuner_core.tuning.additive import AdditiveProblem, Solution, additive_front
from kvtuner_core.tuning.asking import Asking
from kvtuner_core.tuning.choices import Choice, Choices
from kvtuner_core.tuning.coupled import Losses, coupled_front
from kvtuner_core.tuning.spread import Point, spread
from kvtuner_core.tuning.surrogate import Surrogate

_FIRST_SHARE = 2
_FIRST_MOST = 50
_BATCHES = 20
_SMALLEST_BATCH = 4
_DRAWS = 12

Predicted = tuple[Choice, float, float]
"""A choice with its effective bits and its predicted loss."""


def surrogate_front(choices: Choices, model: Surrogate) -> tuple[Predicted, ...]:
    """The Pareto front of the surrogate within the bounds of ``choices``, fewest bits first.

    Exact where the surrogate has no pairwise terms, else as `coupled_front` finds it.
    """
    rows = zip(choices.layers, choices.pairs, strict=True)
    losses = tuple(tuple(model.loss(layers, pair) for pair in pairs) for layers, pairs in rows)
    problem = AdditiveProblem(
        costs=choices.costs,
        losses=losses,
        labels=choices.pairs,
        budget=choices.budget,
        most_labels=choices.max_pairs,
        weights=choices.weights,
        limit=choices.limit,
    )

    def solve(own: Losses) -> tuple[Solution, ...]:
        return additive_front(replace(problem, losses=own))

    found = solve(losses) if model.coupling is None else coupled_front(choices, model, losses, solve)
    return tuple((item.choice, choices.bits_of(item.cost), item.loss) for item in found)


def spread_start(choices: Choices, model: Surrogate, *, most: int) -> tuple[Choice, ...]:
    """Up to ``most`` choices spread along the surrogate's front, the most telling first."""
    front = surrogate_front(choices, model)
    return tuple(front[index][0] for index in spread([(bits, kl) for _, bits, kl in front], (), most=most))


def additive_asking(choices: Choices, model: Surrogate, *, evaluations: int) -> Asking:
    """The additive front alone, spread over its length; nothing is learnt from the answers."""
    yield tuple(choices.policy(choice) for choice in spread_start(choices, model, most=evaluations))


def guided_asking(choices: Choices, model: Surrogate, *, evaluations: int, seed: int) -> Asking:
    """The additive front, refitted to true evaluations until it stops moving, then drawn models.

    Args:
        choices: Every policy that is allowed.
        model: The additive model of the objective.
        evaluations: Evaluations it may ask for, in all; batches follow from it.
        seed: Seed of the drawn models.
    """
    rng = np.random.default_rng(seed)
    size = max(_SMALLEST_BATCH, evaluations // _BATCHES)
    first = max(size, min(evaluations // _FIRST_SHARE, _FIRST_MOST))
    start = spread_start(choices, model, most=first)
    known = _Known(model.objective)
    batch = tuple(choices.policy(choice) for choice in start)
    while batch:
        known.take((yield batch))
        batch = _next(choices, model, known, size=size, rng=rng)


class _Known:
    """What was evaluated so far."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.losses: dict[KVPolicy, float] = {}
        self.points: list[Point] = []

    def take(self, told: Sequence[Candidate]) -> None:
        """Take in a batch."""
        for candidate in told:
            self.losses[candidate.policy] = candidate.loss(self._objective)
            self.points.append((candidate.effective_bits, self.losses[candidate.policy]))

    def observed(self) -> list[tuple[KVPolicy, float]]:
        """Policies and losses, in the order of evaluation."""
        return list(self.losses.items())


def _next(
    choices: Choices, model: Surrogate, known: _Known, *, size: int, rng: np.random.Generator
) -> tuple[KVPolicy, ...]:
    batch = _unseen(choices, model.corrected(known.observed()), known, size=size)
    for _ in range(_DRAWS):
        if batch:
            break
        batch = _unseen(choices, model.corrected(known.observed(), rng=rng), known, size=size)
    return batch


def _unseen(choices: Choices, model: Surrogate, known: _Known, *, size: int) -> tuple[KVPolicy, ...]:
    new = [
        (policy, (bits, kl))
        for choice, bits, kl in surrogate_front(choices, model)
        if (policy := choices.policy(choice)) not in known.losses
    ]
    picked = spread([point for _, point in new], known.points, most=size)
    return tuple(new[index][0] for index in picked)
