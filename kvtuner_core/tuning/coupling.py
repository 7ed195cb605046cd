"""Pairwise terms of the surrogate: how the errors of two layers add up.

A small error moves the logits by a vector, and the KL is about half the squared length of the sum of
the layers' vectors. Squared out, that is the sum of the isolated KLs plus, for every two layers, twice
the correlation of their vectors times the square root of the product of their KLs. The additive model
leaves the second part out. Here it is one coefficient for each two neighbouring layers and one that
they share; or these, and one that all pairs of layers share.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

_NEIGHBOUR = 0.3
_NEIGHBOURS = 0.3
_EVERY = 0.05

Array = NDArray[np.float64]


class Pairwise(StrEnum):
    """Which pairs of layers have a term.

    Attributes:
        NONE: None; the surrogate is a sum over layers.
        NEIGHBOURS: Layers next to each other.
        ALL: All pairs, by one coefficient; those next to each other also by their own.
    """

    NONE = "none"
    NEIGHBOURS = "neighbours"
    ALL = "all"


def pair_features(kind: Pairwise, roots: Array) -> Array:
    """What each coefficient multiplies, in nats, scaled to a standard normal prior.

    Args:
        kind: Which terms.
        roots: Square roots of the isolated KLs of a policy's layers, ``[n, layers]``.

    Returns:
        ``[n, coefficients]``; no columns for `Pairwise.NONE`.
    """
    if kind is Pairwise.NONE:
        return np.zeros((len(roots), 0))
    near = roots[:, 1:] * roots[:, :-1]
    columns = [_NEIGHBOUR * near, _NEIGHBOURS * near.sum(axis=1, keepdims=True)]
    if kind is Pairwise.ALL:
        every = (roots.sum(axis=1) ** 2 - (roots**2).sum(axis=1)) / 2
        columns.append(_EVERY * every[:, None])
    return np.concatenate(columns, axis=1)


def coupling_of(kind: Pairwise, weights: Array, layers: int) -> Array | None:
    """The coefficients as a symmetric matrix ``[layers, layers]`` without a diagonal; ``None`` without terms."""
    if kind is Pairwise.NONE:
        return None
    matrix = np.zeros((layers, layers))
    near = np.arange(layers - 1)
    matrix[near, near + 1] = _NEIGHBOUR * weights[: layers - 1] + _NEIGHBOURS * weights[layers - 1]
    if kind is Pairwise.ALL:
        matrix[np.triu_indices(layers, 1)] += _EVERY * weights[layers]
    return matrix + matrix.T


def interaction(roots: Array, coupling: Array) -> Array:
    """The pairwise terms of policies, ``[n]`` nats per token, from roots ``[n, layers]``."""
    total: Array = 0.5 * ((roots @ coupling) * roots).sum(axis=1)
    return total
