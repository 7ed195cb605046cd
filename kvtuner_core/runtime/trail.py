"""Where a pass may start: at the first layer that reads its history in another way than a pass before did.

What a layer gets depends on the layers below it alone. A policy that agrees with the one scored before it
on its first layers therefore finds their outputs ready, and the numbers are the very same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from kvtuner_core.domain.policy import LayerPrecision

Precisions = tuple[LayerPrecision, ...]


@dataclass(slots=True, eq=False)
class Trail:
    """The outputs of a batch's decoder layers in full precision and under the policy that was run last.

    Args:
        full: Each layer's output in full precision.
    """

    full: Sequence[Any]
    _last: tuple[Precisions, Sequence[Any]] = ((), ())

    def start(self, policy: Precisions) -> tuple[int, Sequence[Any]]:
        """How many leading layers a policy shares with what was run, and outputs that hold theirs."""
        last, outputs = self._last
        ways = ((leading_full_layers(policy), self.full), (shared_layers(policy, last), outputs))
        return max(ways, key=lambda way: way[0])

    def keep(self, policy: Precisions, outputs: Sequence[Any]) -> None:
        """Take in what each layer gave under a policy, or its first ones, in place of what was kept before."""
        self._last = (policy, outputs)


def leading_full_layers(policy: Precisions) -> int:
    """Number of leading layers that are not quantised."""
    return shared_layers(policy, (LayerPrecision(),) * len(policy))


def shared_layers(policy: Precisions, other: Precisions) -> int:
    """Number of leading layers with the same bits; in full precision it counts as such however it is written."""
    return sum(1 for _ in takewhile(_alike, zip(policy, other, strict=False)))


def _alike(pair: tuple[LayerPrecision, LayerPrecision]) -> bool:
    one, other = pair
    return one == other or all(bits.is_full for layer in pair for bits in layer.pairs)
