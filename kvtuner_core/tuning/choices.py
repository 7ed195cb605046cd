"""The policies of a search space as tuples of integers: one index of a pair per layer group.

The pairs of a group are ordered by the bytes they cost in this geometry, widest first, so raising
an index never adds a byte. The choices within a bound on bits are therefore those that can be
reached from the narrowest one by lowering indices, each step within the bound.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from kvtuner_core.domain.memory import check_layers, effective_bits
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import SearchSpace
from kvtuner_core.errors import InputError

Choice = tuple[int, ...]
"""Index of the chosen pair of each layer group."""


class Choices:
    """Every policy that a search space allows, with its effective bits.

    Args:
        space: Layer groups and their pairs.
        scheme: Grouping and rounding of every policy.
        geometry: Cache geometry per layer.
        max_bits: Largest effective bits, or ``None``.

    Raises:
        InputError: If the space does not cover the layers, or nothing fits ``max_bits``.
        SchemeError: If the scheme does not fit the geometry.
    """

    def __init__(
        self,
        space: SearchSpace,
        scheme: QuantScheme,
        geometry: Sequence[LayerGeometry],
        *,
        max_bits: float | None = None,
    ) -> None:
        covered = sorted(layer for group in space.groups for layer in group.layers)
        if covered != list(range(len(geometry))) or not all(group.pairs for group in space.groups):
            raise InputError(
                f"The layer groups must hold each of the {len(geometry)} layers once; "
                f"got {len(covered)} entries. Use the sweep of this model."
            )
        self._layers = tuple(group.layers for group in space.groups)
        self._scheme = scheme
        self._geometry = tuple(geometry)
        self._scalars = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in geometry)
        tables = [self._ordered(group.layers, group.pairs) for group in space.groups]
        self._pairs = tuple(tuple(pair for pair, _ in table) for table in tables)
        self._costs = tuple(tuple(cost for _, cost in table) for table in tables)
        self._budget = self._budget_of(max_bits)

    def _ordered(self, layers: Sequence[int], pairs: Sequence[PrecisionPair]) -> list[tuple[PrecisionPair, float]]:
        def cost(pair: PrecisionPair) -> float:
            total = 0.0
            for layer in layers:
                shape = self._geometry[layer]
                one = KVPolicy(scheme=self._scheme, layers=(LayerPrecision(pair=pair),))
                check_layers(one, (shape,))
                total += effective_bits(one, (shape,)) * shape.kv_heads * (shape.key_dim + shape.value_dim)
            return total

        costed = [(pair, cost(pair)) for pair in dict.fromkeys(pairs)]
        return sorted(costed, key=lambda item: (-item[1], -item[0].key_bits))

    def _budget_of(self, max_bits: float | None) -> float:
        if max_bits is None:
            return float("inf")
        smallest = self.bits(self.narrowest)
        # Sums of floats may miss an exact bound by a rounding error.
        budget = max_bits * self._scalars * (1 + 1e-12)
        if not sum(costs[-1] for costs in self._costs) <= budget:
            raise InputError(
                f"max_bits must be at least {smallest:.3f}, the effective bits of the narrowest policy; "
                f"got {max_bits}. Raise it, or sweep narrower pairs or larger groups."
            )
        return budget

    @property
    def sizes(self) -> Choice:
        """Number of pairs of each group."""
        return tuple(len(pairs) for pairs in self._pairs)

    @cached_property
    def narrowest(self) -> Choice:
        """The choice with the fewest bytes."""
        return tuple(size - 1 for size in self.sizes)

    def policy(self, choice: Choice) -> KVPolicy:
        """The policy that ``choice`` stands for."""
        chosen = {
            layer: self._pairs[group][index] for group, index in enumerate(choice) for layer in self._layers[group]
        }
        return KVPolicy.from_pairs((chosen[layer] for layer in range(len(chosen))), scheme=self._scheme)

    def bits(self, choice: Choice) -> float:
        """Effective bits of ``choice``."""
        return effective_bits(self.policy(choice), self._geometry)

    def fits(self, choice: Choice) -> bool:
        """Whether ``choice`` is within the bound on bits."""
        return sum(costs[index] for costs, index in zip(self._costs, choice, strict=True)) <= self._budget

    def narrowed(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """``choice``, with random groups made narrower one step at a time until it fits."""
        current = list(choice)
        while not self.fits(tuple(current)):
            open_groups = [group for group, size in enumerate(self.sizes) if current[group] < size - 1]
            current[open_groups[int(rng.integers(len(open_groups)))]] += 1
        return tuple(current)

    def uniform(self) -> tuple[Choice, ...]:
        """The choices that give every layer the same pair, widest first; those that fit."""
        shared = [pair for pair in self._pairs[0] if all(pair in pairs for pairs in self._pairs)]
        choices = [tuple(pairs.index(pair) for pairs in self._pairs) for pair in shared]
        return tuple(choice for choice in choices if self.fits(choice))

    def all_fitting(self) -> Iterator[Choice]:
        """Every choice that fits, once, the narrowest first."""
        queue = deque([self.narrowest])
        known = {self.narrowest}
        while queue:
            choice = queue.popleft()
            yield choice
            for group, index in enumerate(choice):
                wider = (*choice[:group], index - 1, *choice[group + 1 :])
                if index and wider not in known and self.fits(wider):
                    known.add(wider)
                    queue.append(wider)
