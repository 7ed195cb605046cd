"""The search that a surrogate guides: solve it exactly, evaluate its front, refit, solve again.

Half of the evaluations are spread along the additive front first: fewer leave gaps, which later
ones only fill where the calibration prompts were kind. Each later batch is the part of the refitted
front that promises to add most to what is known. Where that front holds too little that is new, the
rest of the batch comes from fronts of models drawn from the posterior: plausible given what was
seen, and different where little was. Larger batches are multiples of eight, so that passes of
several policies, on one device or two, are full ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kvtuner_core.tuning.additive import additive_sums
from kvtuner_core.tuning.additive_problem import AdditiveProblem, Sums
from kvtuner_core.tuning.asking import Asking, Told
from kvtuner_core.tuning.choices import Choice, Choices
from kvtuner_core.tuning.coupled import coupled_front
from kvtuner_core.tuning.refitting import Observations
from kvtuner_core.tuning.ridge import one_thread
from kvtuner_core.tuning.spread import Point, spread
from kvtuner_core.tuning.surrogate import Surrogate

_FIRST_SHARE = 2
_BATCHES = 20
_SMALLEST_BATCH = 4
_PASS = 8
"""Batches that are no smaller are multiples of it: a pass of several policies takes as long as one with fewer."""

_DRAWS = 12

Predicted = tuple[Choice, float, float]
"""A choice with its effective bits and its predicted loss."""


class SurrogateFronts:
    """The Pareto fronts of one surrogate after the other, over the same choices and within their bounds.

    Args:
        choices: Every policy that is allowed.
        model: Any of the surrogates: they have their pairs in common.
    """

    def __init__(self, choices: Choices, model: Surrogate) -> None:
        self._choices = choices
        self._columns = [np.array([model.column(pair) for pair in pairs]) for pairs in choices.pairs]
        self._cells = [np.ix_(np.array(layers), own) for layers, own in zip(choices.layers, self._columns, strict=True)]
        self._problem = AdditiveProblem(
            costs=choices.costs,
            losses=tuple(tuple(0.0 for _ in row) for row in choices.costs),
            labels=choices.pairs,
            budget=choices.budget,
            most_labels=choices.max_pairs,
            weights=choices.weights,
            limit=choices.limit,
        )
        self._problem.check()

    def of(self, model: Surrogate) -> Sums:
        """One front, fewest bits first: exact without pairwise terms, else as `coupled_front` finds it."""
        alone = model.alone()
        losses = [alone[cells].sum(axis=0, keepdims=True) for cells in self._cells]
        if model.coupling is None:
            return additive_sums(self._problem, losses)
        return coupled_front(
            self._choices, model, self._columns, losses, lambda tables: additive_sums(self._problem, tables)
        )


def surrogate_front(choices: Choices, model: Surrogate) -> tuple[Predicted, ...]:
    """The Pareto front of the surrogate within the bounds of ``choices``, fewest bits first."""
    found = SurrogateFronts(choices, model).of(model).solutions()
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
    first = max(size, evaluations // _FIRST_SHARE)
    if size >= _PASS:
        size, first = -(-size // _PASS) * _PASS, first // _PASS * _PASS
    known = _Known(choices, model)
    batch = spread_start(choices, model, most=first)
    while batch:
        known.take(batch, (yield tuple(choices.policy(choice) for choice in batch)))
        batch = known.next(size=size, rng=rng)


class _Known:
    """What was evaluated so far, and what it says should come next."""

    def __init__(self, choices: Choices, model: Surrogate) -> None:
        self._choices = choices
        self._objective = model.objective
        self._fronts = SurrogateFronts(choices, model)
        self._observations = Observations(model)
        self._seen: set[Choice] = set()
        self._points: list[Point] = []

    def take(self, asked: Sequence[Choice], told: Sequence[Told]) -> None:
        """Take in a batch."""
        self._seen.update(asked)
        for candidate in told:
            loss = candidate.loss(self._objective)
            self._observations.add(candidate.policy, loss)
            self._points.append((candidate.effective_bits, loss))

    def next(self, *, size: int, rng: np.random.Generator) -> tuple[Choice, ...]:
        """Up to ``size`` new choices: of the refitted model, then of ones that are drawn; none where all are known."""
        with one_thread():
            refit = self._observations.refitted()
            batch = self._unseen(refit.mean(), {}, size=size)
            for _ in range(_DRAWS):
                if len(batch) == size:
                    break
                batch |= self._unseen(refit.drawn(rng), batch, size=size - len(batch))
        return tuple(batch)

    def _unseen(self, model: Surrogate, batch: Mapping[Choice, Point], *, size: int) -> dict[Choice, Point]:
        """Up to ``size`` more choices of a front, as it predicts them, that are neither known nor in the batch."""
        new = {
            item.choice: (self._choices.bits_of(item.cost), item.loss)
            for item in self._fronts.of(model).solutions()
            if item.choice not in self._seen and item.choice not in batch
        }
        choices = tuple(new)
        picked = spread(tuple(new.values()), (*self._points, *batch.values()), most=size)
        return {choices[index]: new[choices[index]] for index in picked}
