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

from kvtuner_core.tuning.additive import Solution
from kvtuner_core.tuning.choices import Choice, Choices
from kvtuner_core.tuning.coupling import interaction
from kvtuner_core.tuning.spread import spread
from kvtuner_core.tuning.surrogate import Surrogate

Losses = tuple[tuple[float, ...], ...]
"""Per unit, the loss of each option."""

_ANCHORS = 12
_FEW_ANCHORS = 4
_ROUNDS = 3


def coupled_front(
    choices: Choices, model: Surrogate, losses: Losses, solve: Callable[[Losses], Sequence[Solution]]
) -> tuple[Solution, ...]:
    """The front of ``model``, whose coupling is not ``None``, fewest bytes first.

    Args:
        choices: Every policy that is allowed.
        model: The surrogate.
        losses: Its losses without pairwise terms.
        solve: The exact front of losses that add up, within the bounds of ``choices``.
    """
    landscape = _Landscape(choices, model, losses)
    front = landscape.front({found.choice: found.cost for found in solve(losses)})
    # Each set of few pairs is solved by itself, which takes its time.
    most = _ANCHORS if choices.max_pairs is None else _FEW_ANCHORS
    for _ in range(_ROUNDS):
        pool = {found.choice: found.cost for found in front}
        places = spread([(choices.bits_of(found.cost), found.loss) for found in front], (), most=most)
        for place in places:
            around = solve(landscape.around(front[place].choice))
            pool |= {found.choice: found.cost for found in around}
        moved = landscape.front(pool)
        if moved == front:
            break
        front = moved
    return front


class _Landscape:
    """Predictions of many choices at once."""

    def __init__(self, choices: Choices, model: Surrogate, losses: Losses) -> None:
        if model.coupling is None:
            raise ValueError("A surrogate without pairwise terms is solved exactly.")
        self._layers = choices.layers
        self._losses = losses
        self._coupling = model.coupling
        self._roots = [
            np.array([[model.root(layer, pair) for layer in layers] for pair in pairs])
            for layers, pairs in zip(choices.layers, choices.pairs, strict=True)
        ]

    def front(self, pool: dict[Choice, int]) -> tuple[Solution, ...]:
        """The non-dominated choices of costs that are known."""
        if not pool:
            return ()
        every = np.array(list(pool), dtype=np.int64)
        predicted = self._predicted(every)
        found: list[Solution] = []
        for choice, cost, loss in sorted(
            zip(pool, pool.values(), predicted.tolist(), strict=True), key=lambda item: (item[1], item[2], item[0])
        ):
            if not found or loss < found[-1].loss:
                found.append(Solution(choice=choice, cost=cost, loss=loss))
        return tuple(found)

    def around(self, choice: Choice) -> Losses:
        """Losses that add up, with every other unit as it is in ``choice``."""
        roots = self._layer_roots(np.array([choice], dtype=np.int64))[0]
        rows = []
        for unit, layers in enumerate(self._layers):
            own = list(layers)
            others = roots.copy()
            others[own] = 0.0
            pull = self._coupling[own] @ others
            within = interaction(self._roots[unit], self._coupling[np.ix_(own, own)])
            moved = np.array(self._losses[unit]) + self._roots[unit] @ pull + within
            rows.append(tuple(moved.tolist()))
        return tuple(rows)

    def _layer_roots(self, every: NDArray[np.int64]) -> NDArray[np.float64]:
        roots = np.zeros((len(every), len(self._coupling)))
        for unit, layers in enumerate(self._layers):
            roots[:, list(layers)] = self._roots[unit][every[:, unit]]
        return roots

    def _predicted(self, every: NDArray[np.int64]) -> NDArray[np.float64]:
        alone = sum(
            (np.array(row)[every[:, unit]] for unit, row in enumerate(self._losses)), start=np.zeros(len(every))
        )
        return Surrogate.bounded_below(alone, interaction(self._layer_roots(every), self._coupling))
