"""The front of a surrogate with pairwise terms, by solving exact sums around points of it, again and again.

With pairwise terms the loss is no sum over units any more. Around one policy it is: every unit then
sees the others as they are there. So the front is solved around a few of its points, everything
found is predicted with the pairwise terms as they are, what is not dominated is the new front, and
that is done until it stops moving. Each policy is predicted exactly; that no better one exists is
not proven, as it is where there are no pairwise terms.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.tuning.additive_problem import Sums
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.coupling import interaction
from kvtuner_core.tuning.spread import spread
from kvtuner_core.tuning.surrogate import Surrogate

Tables = Sequence[NDArray[np.float64]]
"""Per unit, the loss of each option in one or more tables ``[tables, options]``."""

Columns = Sequence[NDArray[np.int64]]
"""Per unit, the surrogate's column of each option; -1 for an unquantised one that was not swept."""

_ANCHORS = 12
_FEW_ANCHORS = 4
_ROUNDS = 3


def coupled_front(
    choices: Choices, model: Surrogate, columns: Columns, losses: Tables, solve: Callable[[Tables], Sums]
) -> Sums:
    """The front of ``model``, whose coupling is not ``None``, fewest bytes first.

    Args:
        choices: Every policy that is allowed.
        model: The surrogate.
        columns: The surrogate's columns of the options.
        losses: Its losses without pairwise terms, one table.
        solve: The exact fronts of tables of losses that add up, within the bounds of ``choices``.
    """
    landscape = _Landscape(choices, model, columns, losses)
    front = landscape.front([solve(losses)])
    # Each set of few pairs is solved by itself, which takes its time.
    most = _ANCHORS if choices.max_pairs is None else _FEW_ANCHORS
    around: set[tuple[int, ...]] = set()
    for _ in range(_ROUNDS):
        bits = [choices.bits_of(cost) for cost in front.costs.tolist()]
        places = spread(list(zip(bits, front.losses.tolist(), strict=True)), (), most=most)
        # What was found around a point that is still there has been compared with the front already.
        new = [place for place in places if tuple(front.choices[place].tolist()) not in around]
        if not new:
            break
        anchors = front.choices[new]
        around.update(tuple(anchor) for anchor in anchors.tolist())
        moved = landscape.front([front, solve(landscape.around(anchors))])
        if np.array_equal(moved.choices, front.choices):
            break
        front = moved
    return front


class _Landscape:
    """Predictions of many choices at once."""

    def __init__(self, choices: Choices, model: Surrogate, columns: Columns, losses: Tables) -> None:
        if model.coupling is None:
            raise ValueError("A surrogate without pairwise terms is solved exactly.")
        units, layers = len(choices.layers), len(model.coupling)
        self._unit_of = np.empty(layers, dtype=np.int64)
        for unit, own in enumerate(choices.layers):
            self._unit_of[list(own)] = unit
        within = self._unit_of[:, None] == self._unit_of[None, :]
        self._coupling = model.coupling
        self._across = np.where(within, 0.0, model.coupling)
        # A row for each option of each unit, one unit after the other.
        firsts = np.cumsum([0, *(len(row) for row in columns)])
        self._firsts, self._bounds = firsts[:-1], firsts[1:-1]
        self._roots = np.zeros((int(firsts[-1]), layers))
        table = model.roots()
        for unit in range(units):
            chosen = np.array(choices.layers[unit])
            rows = slice(int(firsts[unit]), int(firsts[unit + 1]))
            self._roots[rows, chosen] = table[np.ix_(chosen, columns[unit])].T
        self._alone = np.concatenate([row[0] for row in losses])
        self._inside = interaction(self._roots, np.where(within, model.coupling, 0.0))

    def front(self, pools: Sequence[Sums]) -> Sums:
        """The non-dominated choices of pools whose costs are known; of equals the one with the smallest indices."""
        every, costs = (np.concatenate([getattr(pool, name) for pool in pools]) for name in ("choices", "costs"))
        predicted = self._predicted(every)
        order = np.lexsort((predicted, costs))
        sorted_losses = predicted[order]
        lowest = np.minimum.accumulate(sorted_losses)
        better = np.ones(len(order), dtype=bool)
        better[1:] = sorted_losses[1:] < lowest[:-1]
        kept = self._first_of_equals(every, order, np.flatnonzero(better), (costs[order], sorted_losses))
        return Sums(choices=every[kept], costs=costs[kept], losses=predicted[kept])

    @staticmethod
    def _first_of_equals(
        every: NDArray[np.int64],
        order: NDArray[np.int64],
        starts: NDArray[np.int64],
        values: tuple[NDArray[np.int64], NDArray[np.float64]],
    ) -> NDArray[np.int64]:
        """For each start in a sorted order, of those equal to it in cost and loss the one with the smallest indices."""
        same = np.ones(len(order) + 1, dtype=bool)
        same[0] = same[-1] = False
        for value in values:
            same[1:-1] &= value[1:] == value[:-1]
        ends = np.flatnonzero(~same)
        last = ends[np.searchsorted(ends, starts, side="right")]
        chosen = [
            min(order[start:end].tolist(), key=lambda row: every[row].tolist())
            if end - start > 1
            else int(order[start])
            for start, end in zip(starts.tolist(), last.tolist(), strict=True)
        ]
        return np.array(chosen, dtype=np.int64)

    def around(self, anchors: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Losses that add up, with every other unit as it is in each of ``anchors``: a table an anchor."""
        pull = self._layer_roots(anchors) @ self._across
        moved = self._alone + pull @ self._roots.T + self._inside
        return np.split(moved, self._bounds, axis=1)

    def _rows(self, every: NDArray[np.int64]) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = every + self._firsts
        return rows

    def _layer_roots(self, every: NDArray[np.int64]) -> NDArray[np.float64]:
        layers = np.arange(len(self._coupling))
        roots: NDArray[np.float64] = self._roots[self._rows(every)[:, self._unit_of], layers]
        return roots

    def _predicted(self, every: NDArray[np.int64]) -> NDArray[np.float64]:
        alone = self._alone[self._rows(every)].sum(axis=1)
        return Surrogate.bounded_below(alone, interaction(self._layer_roots(every), self._coupling))
