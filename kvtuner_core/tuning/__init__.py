"""Algorithms on values: pruning, grouping, search, front; no torch, no I/O."""

from kvtuner_core.tuning.baselines import baselines
from kvtuner_core.tuning.correlation import RankCorrelation, rank_correlation
from kvtuner_core.tuning.front import hypervolume, pareto_front
from kvtuner_core.tuning.grouping import build_space, group_layers
from kvtuner_core.tuning.pruning import prune_pairs
from kvtuner_core.tuning.search import PolicySearch, norms_of, ranked_by

__all__ = [
    "PolicySearch",
    "RankCorrelation",
    "baselines",
    "build_space",
    "group_layers",
    "hypervolume",
    "norms_of",
    "pareto_front",
    "prune_pairs",
    "rank_correlation",
    "ranked_by",
]
