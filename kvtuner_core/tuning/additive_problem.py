"""What the additive optimum is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.errors import InputError

LARGEST_LOSS = 1e6
"""Nats per token that stand for a loss that is not a finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveProblem:
    """One option is chosen per unit; costs and losses are summed.

    Attributes:
        costs: Per unit, the cost of each option: whole numbers from 0.
        losses: Per unit, the loss of each option; what is not finite counts as `LARGEST_LOSS`.
        labels: Per unit, what each option is (equal labels are the same pair); only ``most_labels``
            looks at them.
        budget: Largest cost of a solution, or ``None``.
        most_labels: Most different labels in a solution, or ``None``.
        weights: Per unit, what each option adds to a second sum, whole numbers from 0; only
            ``limit`` looks at them.
        limit: Largest sum of the weights, or ``None``.
    """

    costs: tuple[tuple[int, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    labels: tuple[tuple[object, ...], ...] = ()
    budget: float | None = None
    most_labels: int | None = None
    weights: tuple[tuple[int, ...], ...] = ()
    limit: int | None = None

    def check(self) -> None:
        """Raise `InputError` if units or options are missing."""
        shapes = [[len(row) for row in table] for table in (self.costs, self.losses)]
        if not shapes[0] or not all(shapes[0]) or shapes[0] != shapes[1]:
            raise InputError("Every unit needs a cost and a loss for each of its options; got tables that differ.")
        if self.most_labels is not None:
            if self.most_labels < 1:
                raise InputError(f"At least one pair must be allowed; got {self.most_labels}. Use 2 or 3.")
            if [len(row) for row in self.labels] != shapes[0]:
                raise InputError("A bound on different pairs needs the pair of every option; some are missing.")
        if self.limit is not None and [len(row) for row in self.weights] != shapes[0]:
            raise InputError("A limit on weights needs the weight of every option; some are missing.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A point of the additive front.

    Attributes:
        choice: Index of the chosen option of each unit.
        cost: Sum of the costs.
        loss: Sum of the losses.
    """

    choice: tuple[int, ...]
    cost: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Points of additive fronts as arrays.

    Attributes:
        choices: Index of the chosen option of each unit ``[n, units]``.
        costs: Sum of the costs ``[n]``.
        losses: Sum of the losses ``[n]``.
    """

    choices: NDArray[np.int64]
    costs: NDArray[np.int64]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, solutions: Sequence[Solution], *, units: int) -> "Sums":
        """The points of values that are known one by one."""
        return cls(
            choices=np.array([item.choice for item in solutions], dtype=np.int64).reshape(len(solutions), units),
            costs=np.array([item.cost for item in solutions], dtype=np.int64),
            losses=np.array([item.loss for item in solutions], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.costs)

    def solutions(self) -> tuple[Solution, ...]:
        """The points one by one."""
        rows = zip(self.choices.tolist(), self.costs.tolist(), self.losses.tolist(), strict=True)
        return tuple(Solution(choice=tuple(choice), cost=cost, loss=loss) for choice, cost, loss in rows)
