"""Layer grouping: layers that share one choice of pair (KVTuner, section 5.2).

Layers are first split by identical surviving pairs, then by DBSCAN on the vectors of their output
errors over those pairs (Euclidean distance, no scaling: the errors are relative already). The
paper leaves open what becomes of noise points; `NoiseRule` says it here.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import BASELINE_PAIRS, PrecisionPair
from kvtuner_core.domain.study import GroupingOptions, LayerGroup, NoiseRule, PruningOptions, SearchSpace
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.profiles import by_layer, widest_first
from kvtuner_core.tuning.pruning import prune_pairs

_LARGEST_ERROR = 1e6


def build_space(profiles: Sequence[ErrorProfile], pruning: PruningOptions, grouping: GroupingOptions) -> SearchSpace:
    """Prune, then group: what a search chooses from.

    With ``pruning.uniform_choices`` each group may choose the swept pairs of the uniform baselines
    beside the pairs that its layers kept; which layers share a group does not change.

    Raises:
        InputError: If a profile is missing or an option is out of range.
    """
    kept = prune_pairs(profiles, pruning)
    candidates = widest_first(profile.pair for profile in profiles)
    uniform = tuple(pair for pair in BASELINE_PAIRS if pair in candidates) if pruning.uniform_choices else ()
    groups = tuple(
        replace(group, pairs=widest_first((*group.pairs, *uniform))) for group in group_layers(profiles, kept, grouping)
    )
    return SearchSpace(candidates=candidates, kept=kept, groups=groups)


def group_layers(
    profiles: Sequence[ErrorProfile], kept: Sequence[tuple[PrecisionPair, ...]], options: GroupingOptions
) -> tuple[LayerGroup, ...]:
    """Groups of layers, ordered by their first layer; together they hold every layer once.

    Args:
        profiles: One profile per layer and pair.
        kept: Surviving pairs per layer.
        options: Whether to group, and how DBSCAN runs.

    Raises:
        InputError: If a profile is missing or an option is out of range.
    """
    _check(options)
    tables = by_layer(profiles)
    if len(tables) != len(kept):
        raise InputError(f"Kept pairs are needed for each of the {len(tables)} layers; got {len(kept)}.")
    if not options.enabled:
        return tuple(LayerGroup(layers=(layer,), pairs=pairs) for layer, pairs in enumerate(kept))
    parts: dict[tuple[PrecisionPair, ...], list[int]] = {}
    for layer, pairs in enumerate(kept):
        parts.setdefault(widest_first(pairs), []).append(layer)
    groups = [group for pairs, layers in parts.items() for group in _split(tables, pairs, layers, options)]
    return tuple(sorted(groups, key=lambda group: group.layers))


def _check(options: GroupingOptions) -> None:
    if not (math.isfinite(options.eps) and options.eps > 0):
        raise InputError(f"eps must be a distance above 0; got {options.eps}. Use 0.05.")
    if type(options.min_samples) is not int or options.min_samples < 1:
        raise InputError(f"min_samples must be a whole number from 1; got {options.min_samples}. Use 2.")


def _split(
    tables: Sequence[dict[PrecisionPair, ErrorProfile]],
    pairs: tuple[PrecisionPair, ...],
    layers: list[int],
    options: GroupingOptions,
) -> list[LayerGroup]:
    errors = np.array([[tables[layer][pair].output_error for pair in pairs] for layer in layers], dtype=np.float64)
    clusters: dict[int, list[int]] = {}
    for layer, label in zip(layers, _labels(errors, options), strict=True):
        clusters.setdefault(label, []).append(layer)
    noise = clusters.pop(-1, [])
    groups = [LayerGroup(layers=tuple(members), pairs=pairs) for members in clusters.values()]
    left_over = [tuple(noise)] if options.noise is NoiseRule.TOGETHER and noise else [(layer,) for layer in noise]
    return groups + [LayerGroup(layers=members, pairs=pairs, noise=True) for members in left_over]


def _labels(errors: NDArray[np.float64], options: GroupingOptions) -> list[int]:
    from sklearn.cluster import DBSCAN

    bounded = np.clip(np.nan_to_num(errors, nan=_LARGEST_ERROR), -_LARGEST_ERROR, _LARGEST_ERROR)
    labels = DBSCAN(eps=options.eps, min_samples=options.min_samples).fit(bounded).labels_
    return [int(label) for label in labels]
