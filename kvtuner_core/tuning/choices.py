"""The policies of a search space as tuples of integers: one index of a pair per layer group.

The pairs of a group are ordered by the bytes they cost in this geometry, widest first, so raising
an index never adds a byte. The choices within a bound on bits are therefore those that can be
reached from the narrowest one by lowering indices, each step within the bound. With a bound on
different pairs that holds within each set of pairs that is small enough.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, combinations

import numpy as np

from kvtuner_core.domain.memory import check_layers, effective_bits, layer_bytes
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.strategy import GIB, MemoryBound
from kvtuner_core.domain.study import SearchSpace
from kvtuner_core.errors import InputError

Choice = tuple[int, ...]
"""Index of the chosen pair of each layer group."""

_Allowed = tuple[tuple[int, ...], ...]
"""Per layer group, the indices that may be chosen together, ascending."""

_MOST_SETS = 20_000


class Choices:
    """Every policy that a search space allows, with its effective bits.

    Args:
        space: Layer groups and their pairs.
        scheme: Grouping and rounding of every policy.
        geometry: Cache geometry per layer.
        max_bits: Largest effective bits, or ``None``.
        max_pairs: Most different pairs in one policy, or ``None``.
        memory: Most bytes of the cache at a batch and context, or ``None``.

    Raises:
        InputError: If the space does not cover the layers, or nothing fits the bounds.
        SchemeError: If the scheme does not fit the geometry.
    """

    def __init__(
        self,
        space: SearchSpace,
        scheme: QuantScheme,
        geometry: Sequence[LayerGeometry],
        *,
        max_bits: float | None = None,
        max_pairs: int | None = None,
        memory: MemoryBound | None = None,
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
        self._weights = self._weights_of(memory)
        self._budget = self._budget_of(max_bits)
        self._limit = self._limit_of(memory)
        self._least = tuple(tuple(accumulate(row, min)) for row in self._weights)
        self._max_pairs = max_pairs
        self._sets = self._sets_of(max_pairs)

    def _ordered(self, layers: Sequence[int], pairs: Sequence[PrecisionPair]) -> list[tuple[PrecisionPair, int]]:
        def cost(pair: PrecisionPair) -> int:
            total = 0.0
            for layer in layers:
                shape = self._geometry[layer]
                one = KVPolicy(scheme=self._scheme, layers=(LayerPrecision(pair=pair),))
                check_layers(one, (shape,))
                total += effective_bits(one, (shape,)) * shape.kv_heads * (shape.key_dim + shape.value_dim)
            return round(total * self._scheme.flush_tokens / 8)

        costed = [(pair, cost(pair)) for pair in dict.fromkeys(pairs)]
        return sorted(costed, key=lambda item: (-item[1], -item[0].key_bits))

    def _budget_of(self, max_bits: float | None) -> float | None:
        if max_bits is None:
            return None
        # A bound hit exactly may be missed by a rounding error.
        budget = max_bits * self._scalars * self._scheme.flush_tokens / 8 * (1 + 1e-12)
        if not sum(costs[-1] for costs in self._costs) <= budget:
            smallest = self.bits(self.narrowest)
            raise InputError(
                f"max_bits must be at least {smallest:.3f}, the effective bits of the narrowest policy; "
                f"got {max_bits}. Raise it, or sweep narrower pairs or larger groups."
            )
        return budget

    def _weights_of(self, memory: MemoryBound | None) -> tuple[tuple[int, ...], ...]:
        """Bytes of each pair of each group at the batch and context of the bound; zeros where there is none."""
        if memory is None:
            return tuple((0,) * len(pairs) for pairs in self._pairs)

        def weight(layer: int, pair: PrecisionPair) -> int:
            one = KVPolicy(scheme=self._scheme, layers=(LayerPrecision(pair=pair),))
            return layer_bytes(one, 0, self._geometry[layer], tokens=memory.context, batch=memory.batch)

        rows = zip(self._layers, self._pairs, strict=True)
        return tuple(tuple(sum(weight(layer, pair) for layer in layers) for pair in pairs) for layers, pairs in rows)

    def _limit_of(self, memory: MemoryBound | None) -> int | None:
        if memory is None:
            return None
        smallest = sum(min(row) for row in self._weights)
        if smallest > memory.max_bytes:
            # Rounded up, so that what is named is enough.
            needed = math.ceil(smallest / GIB * 1e4) / 1e4
            raise InputError(
                f"max_gib must be at least {needed:.4f}, the GiB of the smallest policy at {memory.at}; "
                f"got {memory.max_gib:g}. Raise it, shorten the context, or sweep narrower pairs."
            )
        return memory.max_bytes

    def _sets_of(self, max_pairs: int | None) -> tuple[_Allowed, ...]:
        every = tuple(dict.fromkeys(pair for pairs in self._pairs for pair in pairs))
        if max_pairs is None or max_pairs >= len(every):
            whole = tuple(tuple(range(size)) for size in self.sizes)
            if not self._reachable(whole):
                raise InputError("Some policy must fit both max_bits and max_gib; none does. Raise one of them.")
            return (whole,)
        if max_pairs < 1 or math.comb(len(every), max_pairs) > _MOST_SETS:
            raise InputError(
                f"max_pairs must be from 1, and leave at most {_MOST_SETS} sets of pairs to try; got {max_pairs} of "
                f"{len(every)} pairs. Use 2 or 3."
            )
        sets = (self._allowed(frozenset(kept)) for kept in combinations(every, max_pairs))
        fitting = tuple(dict.fromkeys(allowed for allowed in sets if all(allowed) and self._reachable(allowed)))
        if not fitting:
            raise InputError(
                f"Some policy must fit; with {max_pairs} different pairs, the bounds on bits and bytes, and the layers "
                "that are pinned or may not have a pair, none does. Allow more pairs or bits."
            )
        return fitting

    def _allowed(self, kept: frozenset[PrecisionPair]) -> _Allowed:
        return tuple(tuple(index for index, pair in enumerate(pairs) if pair in kept) for pairs in self._pairs)

    def _reachable(self, allowed: _Allowed) -> bool:
        first = tuple(indices[-1] for indices in allowed)
        return self._within(first) or (self._passes(first) and next(self._reached(allowed), None) is not None)

    def _within(self, choice: Choice) -> bool:
        return (self._budget is None or self.cost(choice) <= self._budget) and (
            self._limit is None or self._sum(self._weights, choice) <= self._limit
        )

    def _passes(self, choice: Choice) -> bool:
        """Whether ``choice``, or one with wider pairs, may be within the bounds.

        A wider pair nearly always takes more bytes; an unquantised side of a sliding window, which
        forgets token by token and not by whole groups, may take a few less.
        """
        return (self._budget is None or self.cost(choice) <= self._budget) and (
            self._limit is None or self._sum(self._least, choice) <= self._limit
        )

    @staticmethod
    def _sum(rows: Sequence[Sequence[int]], choice: Choice) -> int:
        return sum(row[index] for row, index in zip(rows, choice, strict=True))

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Layers of each group."""
        return self._layers

    @property
    def pairs(self) -> tuple[tuple[PrecisionPair, ...], ...]:
        """Pairs of each group, the one with most bytes first."""
        return self._pairs

    @property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Bytes of each pair of each group, for as many tokens as are packed together."""
        return self._costs

    @property
    def budget(self) -> float | None:
        """Most bytes of a choice, in the unit of `costs`."""
        return self._budget

    @property
    def weights(self) -> tuple[tuple[int, ...], ...]:
        """Bytes of each pair of each group at the bound's batch and context; zeros where bytes are not bounded."""
        return self._weights

    @property
    def limit(self) -> int | None:
        """Most bytes of a choice, in the unit of `weights`."""
        return self._limit

    @property
    def max_pairs(self) -> int | None:
        """Most different pairs in one policy."""
        return self._max_pairs

    @property
    def geometry(self) -> tuple[LayerGeometry, ...]:
        """Cache geometry per layer."""
        return self._geometry

    def cost(self, choice: Choice) -> int:
        """Bytes of ``choice``, in the unit of `costs`."""
        return self._sum(self._costs, choice)

    def bits_of(self, cost: int) -> float:
        """Effective bits of a sum of `costs`."""
        return 8 * cost / (self._scalars * self._scheme.flush_tokens)

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
        """Whether ``choice`` is within the bounds on bits, on bytes and on different pairs."""
        return self._within(choice) and (self._max_pairs is None or len(self._used(choice)) <= self._max_pairs)

    def _used(self, choice: Choice) -> frozenset[PrecisionPair]:
        return frozenset(pairs[index] for pairs, index in zip(self._pairs, choice, strict=True))

    def narrowed(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """``choice``, with random groups made narrower one step at a time until it fits.

        Too many different pairs are first replaced by those of the set that changes the bytes of
        the groups least.
        """
        allowed = self._sets[0]
        if not self.fits(choice) and len(self._sets) > 1:
            choice, allowed = min(
                (self._nearest(choice, allowed) for allowed in self._sets), key=lambda item: self._far(item[0], choice)
            )
        current = list(choice)
        while not self._within(tuple(current)):
            open_groups = [group for group, indices in enumerate(allowed) if current[group] < indices[-1]]
            if not open_groups:
                return next(self._reached(allowed))
            group = open_groups[int(rng.integers(len(open_groups)))]
            current[group] = next(index for index in allowed[group] if index > current[group])
        return tuple(current)

    def _nearest(self, choice: Choice, allowed: _Allowed) -> tuple[Choice, _Allowed]:
        rows = zip(choice, allowed, self._costs, strict=True)
        return tuple(
            min(indices, key=lambda index: (abs(costs[index] - costs[wanted]), abs(index - wanted)))
            for wanted, indices, costs in rows
        ), allowed

    def _far(self, choice: Choice, wanted: Choice) -> int:
        return sum(
            abs(costs[one] - costs[other]) for costs, one, other in zip(self._costs, choice, wanted, strict=True)
        )

    def uniform(self) -> tuple[Choice, ...]:
        """The choices that give every layer the same pair, widest first; those that fit."""
        shared = [pair for pair in self._pairs[0] if all(pair in pairs for pairs in self._pairs)]
        choices = [tuple(pairs.index(pair) for pairs in self._pairs) for pair in shared]
        return tuple(choice for choice in choices if self.fits(choice))

    def all_fitting(self) -> Iterator[Choice]:
        """Every choice that fits, once, the narrowest of each set of pairs first."""
        known: set[Choice] = set()
        for allowed in self._sets:
            # A choice of another set must still be passed through, so each set keeps its own record.
            for choice in self._reached(allowed):
                if choice not in known:
                    known.add(choice)
                    yield choice

    def _reached(self, allowed: _Allowed) -> Iterator[Choice]:
        first = tuple(indices[-1] for indices in allowed)
        queue, seen = deque([first]), {first}
        while queue:
            choice = queue.popleft()
            if self._within(choice):
                yield choice
            for group, index in enumerate(choice):
                lower = [other for other in allowed[group] if other < index]
                if not lower:
                    continue
                wider = (*choice[:group], lower[-1], *choice[group + 1 :])
                if wider not in seen and self._passes(wider):
                    seen.add(wider)
                    queue.append(wider)
