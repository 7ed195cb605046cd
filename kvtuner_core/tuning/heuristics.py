"""Solvers that do not learn from what they are told: greedy, KVmix's allocation, random, protected ends."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.tuning.asking import Asking
from kvtuner_core.tuning.choices import Choice, Choices
from kvtuner_core.tuning.guided import Predicted
from kvtuner_core.tuning.profiles import widest_first
from kvtuner_core.tuning.spread import spread
from kvtuner_core.tuning.surrogate import Surrogate

KVMIX_SHARES = (0.2, 0.1, 0.3, 0.4, 0.0, 0.5, 0.6, 0.8, 1.0)
"""Shares of layers that KVmix's allocation makes wider; the first is the published one."""

_ENDS = (1, 2, 3)
_TRIES = 20


def uniform_asking(choices: Choices) -> Asking:
    """The uniform policies that are allowed, widest first."""
    yield tuple(choices.policy(choice) for choice in choices.uniform())


def random_asking(choices: Choices, *, evaluations: int, seed: int) -> Asking:
    """Different random policies; each draws how wide it is, then every layer's pair around that."""
    rng = np.random.default_rng(seed)
    sizes = np.array(choices.sizes)
    drawn: dict[Choice, None] = {}
    for _ in range(_TRIES * evaluations):
        if len(drawn) == evaluations:
            break
        near = rng.random() * (sizes - 1) + rng.random() * sizes * rng.normal(0.0, 0.5, len(sizes))
        choice = np.clip(np.rint(near), 0, sizes - 1)
        drawn.setdefault(choices.narrowed(tuple(int(index) for index in choice), rng))
    yield tuple(choices.policy(choice) for choice in drawn)


def greedy_asking(choices: Choices, model: Surrogate, *, evaluations: int) -> Asking:
    """A chain from the widest policy to the narrowest, each step the least predicted KL per byte saved."""
    chain = [step for step in _chain(choices, model) if choices.fits(step[0])]
    picked = spread([(bits, kl) for _, bits, kl in chain], (), most=evaluations)
    yield tuple(choices.policy(chain[index][0]) for index in picked)


def _chain(choices: Choices, model: Surrogate) -> Iterator[Predicted]:
    losses = [
        [model.loss(layers, pair) for pair in pairs]
        for layers, pairs in zip(choices.layers, choices.pairs, strict=True)
    ]
    current = [0] * len(losses)
    while True:
        total = sum(row[index] for row, index in zip(losses, current, strict=True))
        yield tuple(current), choices.bits_of(choices.cost(tuple(current))), total
        steps = [
            ((row[index] - row[current[group]]) / saved, group, index)
            for group, row in enumerate(losses)
            for index in range(current[group] + 1, len(row))
            if (saved := choices.costs[group][current[group]] - choices.costs[group][index]) > 0
        ]
        if not steps:
            return
        _, group, index = min(steps)
        current[group] = index


def kvmix_asking(
    scores: tuple[Sequence[float], Sequence[float]], scheme: QuantScheme, *, shares: Sequence[float] = KVMIX_SHARES
) -> Asking:
    """KVmix's allocation: K3 and V4 for the most sensitive layers, keys and values ranked apart, else 2 bits.

    KVmix (arXiv 2506.08018) ranks by the gradient norms of W_k and W_v; any score per layer will do.

    Args:
        scores: Sensitivity of each layer's keys, and of its values.
        scheme: Grouping and rounding.
        shares: Shares of layers that become wider, one policy each.
    """
    yield tuple(dict.fromkeys(kvmix_policy(scores, scheme, share=share) for share in shares))


def kvmix_policy(
    scores: tuple[Sequence[float], Sequence[float]], scheme: QuantScheme, *, share: float = KVMIX_SHARES[0]
) -> KVPolicy:
    """One allocation of `kvmix_asking`; of layers with equal scores the first are the wider ones."""
    wide_keys, wide_values = (_most(side, share) for side in scores)
    pairs = (
        PrecisionPair(key_bits=3 if layer in wide_keys else 2, value_bits=4 if layer in wide_values else 2)
        for layer in range(len(scores[0]))
    )
    return KVPolicy.from_pairs(pairs, scheme=scheme)


def _most(scores: Sequence[float], share: float) -> frozenset[int]:
    ranked = sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))
    return frozenset(ranked[: round(share * len(scores))])


def side_scores(model: Surrogate) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isolated KL of each layer's narrowest keys under the widest values that were swept, and the other way round."""
    keys = min(model.pairs, key=lambda pair: (pair.key_bits, -pair.value_bits))
    values = min(model.pairs, key=lambda pair: (pair.value_bits, -pair.key_bits))
    layers = range(len(model.isolated))
    return tuple(model.loss((layer,), keys) for layer in layers), tuple(
        model.loss((layer,), values) for layer in layers
    )


def protected_asking(pairs: Sequence[PrecisionPair], scheme: QuantScheme, *, layers: int, evaluations: int) -> Asking:
    """First layers, or first and last ones, wider than the rest: one to three of them, every two pairs."""
    found = _protected(widest_first(pairs), scheme, layers)
    yield tuple(islice(dict.fromkeys(found), evaluations))


def _protected(pairs: Sequence[PrecisionPair], scheme: QuantScheme, layers: int) -> Iterator[KVPolicy]:
    for ends in _ENDS:
        for last in (True, False):
            for place, wide in enumerate(pairs):
                for narrow in pairs[place + 1 :]:
                    kept = set(range(ends)) | (set(range(layers - ends, layers)) if last else set())
                    chosen = (wide if layer in kept else narrow for layer in range(layers))
                    yield KVPolicy.from_pairs(chosen, scheme=scheme)
