"""A search space with pinned layers and forbidden pairs taken out, and the one in which layers choose alone."""

from collections.abc import Sequence
from dataclasses import replace

from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.strategy import Constraints
from kvtuner_core.domain.study import LayerGroup, SearchSpace
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.profiles import widest_first


def layer_space(space: SearchSpace) -> SearchSpace:
    """Every layer by itself, with all pairs that were swept; nothing pruned, nothing grouped."""
    pairs = widest_first(space.candidates)
    layers = range(len(space.kept))
    return SearchSpace(
        candidates=space.candidates,
        kept=tuple(pairs for _ in layers),
        groups=tuple(LayerGroup(layers=(layer,), pairs=pairs) for layer in layers),
    )


def single_layers(space: SearchSpace) -> SearchSpace:
    """The same pairs for every layer as its group has, but each layer chooses alone."""
    groups = [replace(group, layers=(layer,)) for group in space.groups for layer in group.layers]
    return replace(space, groups=tuple(sorted(groups, key=lambda group: group.layers)))


def constrained(space: SearchSpace, constraints: Constraints) -> SearchSpace:
    """The space that is left; layers of a group that may choose from less leave it together.

    Raises:
        InputError: If a layer does not exist, is pinned twice or left without a pair, or a pinned
            pair was neither swept nor is the unquantised one.
    """
    _check(space, constraints)
    groups: list[LayerGroup] = []
    for group in space.groups:
        parts: dict[tuple[PrecisionPair, ...], list[int]] = {}
        for layer in group.layers:
            parts.setdefault(_allowed(layer, group.pairs, constraints), []).append(layer)
        groups += [replace(group, layers=tuple(layers), pairs=pairs) for pairs, layers in parts.items()]
    return replace(space, groups=tuple(sorted(groups, key=lambda group: group.layers)))


def _allowed(layer: int, pairs: Sequence[PrecisionPair], constraints: Constraints) -> tuple[PrecisionPair, ...]:
    pinned = [rule.pair for rule in constraints.pinned if rule.layer == layer]
    forbidden = {rule.pair for rule in constraints.forbidden if rule.layer == layer}
    left = tuple(pinned or (pair for pair in pairs if pair not in forbidden))
    if not left:
        names = ", ".join(pair.name for pair in pairs)
        raise InputError(f"Every layer needs a pair; layer {layer} has only {names}, all forbidden. Allow one of them.")
    return left


def _check(space: SearchSpace, constraints: Constraints) -> None:
    layers = len(space.kept)
    for rule in (*constraints.pinned, *constraints.forbidden):
        if not 0 <= rule.layer < layers:
            raise InputError(f"A layer must be from 0 to {layers - 1}; got {rule}.")
    for rule in constraints.pinned:
        if rule.pair not in space.candidates and not rule.pair.is_full:
            names = ", ".join(pair.name for pair in space.candidates)
            raise InputError(f"A pinned pair must be one that was swept ({names}) or K16V16; got {rule}.")
    pinned = [rule.layer for rule in constraints.pinned]
    twice = sorted({layer for layer in pinned if pinned.count(layer) > 1})
    if twice:
        raise InputError(f"A layer may be pinned to one pair; layer {twice[0]} has {pinned.count(twice[0])}.")
