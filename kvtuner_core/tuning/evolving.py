"""NSGA-II and MOEA/D over one pair per layer group (KVTuner, section 5.3).

The paper names MOEA/D, its code runs NSGA-II with a population of 50 and 200 evaluations, unseeded.
Here the run is seeded, and every evaluation is spent on a policy that was not scored before.
"""

from collections.abc import Sequence

import numpy as np

from kvtuner_core.domain.objective import Objective
from kvtuner_core.tuning.asking import Asking
from kvtuner_core.tuning.choices import Choice, Choices

_TRIES = 30
_SMALLEST_POPULATION = 4


def evolving_asking(
    choices: Choices,
    *,
    evaluations: int,
    population: int,
    seed: int,
    warm: Sequence[Choice] = (),
    decomposed: bool = False,
    objective: Objective = Objective.MEAN_KL,
) -> Asking:
    """Generations of policies, each bred from those before it.

    Args:
        choices: Every policy that is allowed.
        evaluations: Evaluations it may ask for, in all.
        population: Individuals of the population; at most half of ``evaluations`` is used, so that
            there is a second generation.
        seed: Seed of everything random.
        warm: Choices that the first generation begins with, such as points of the additive front;
            the extremes and the uniform policies follow, then random ones.
        decomposed: Whether MOEA/D runs in place of NSGA-II.
        objective: What is minimised beside the bits.
    """
    from kvtuner_core.tuning.evolution import Evolution

    size = max(_SMALLEST_POPULATION, min(population, evaluations // 2))
    rng = np.random.default_rng(seed)
    start = _start(choices, rng, size, warm)
    # Small generations select more often, which matters where evaluations are few.
    offspring = max(_SMALLEST_POPULATION, size // 2)
    evolution = Evolution(sizes=choices.sizes, start=start, offspring=offspring, seed=seed, decomposed=decomposed)
    seen: set[Choice] = set()
    while len(seen) < evaluations:
        generation = []
        for wanted in evolution.ask() or start:
            choice = _unseen(choices, wanted, seen, rng)
            seen.add(choice)
            generation.append(choice)
            if len(seen) == evaluations:
                break
        told = yield tuple(choices.policy(choice) for choice in generation)
        if len(seen) < evaluations:
            scores = [(item.effective_bits, item.loss(objective)) for item in told]
            evolution.tell([(choice, *score) for choice, score in zip(generation, scores, strict=True)])


def _start(choices: Choices, rng: np.random.Generator, size: int, warm: Sequence[Choice]) -> tuple[Choice, ...]:
    """The first generation: what is given, the extremes, the uniform policies, then random ones of all widths."""
    sizes = np.array(choices.sizes)
    narrowest = choices.narrowed(choices.narrowest, rng)
    widest = choices.narrowed((0,) * len(sizes), rng)
    chosen = dict.fromkeys((*warm, narrowest, widest, *choices.uniform()))
    for level in np.linspace(0.0, 1.0, 4 * size):
        if len(chosen) >= size:
            break
        # Levels from both ends inwards and back, so that a short start still spans the bits.
        near = (level * 7.0 % 1.0) * (sizes - 1) + rng.normal(0.0, 0.7, len(sizes))
        choice = np.clip(np.rint(near), 0, sizes - 1)
        chosen.setdefault(choices.narrowed(tuple(int(index) for index in choice), rng))
    for choice in choices.all_fitting():
        if len(chosen) >= size:
            break
        chosen.setdefault(choice)
    return tuple(chosen)[:size]


def _unseen(choices: Choices, wanted: Choice, seen: set[Choice], rng: np.random.Generator) -> Choice:
    """``wanted`` where it is new and fits, else a neighbour that is; there always is one left."""
    choice = choices.narrowed(wanted, rng)
    for _ in range(_TRIES):
        if choice not in seen:
            return choice
        group = int(rng.integers(len(choice)))
        index = int(rng.integers(choices.sizes[group]))
        choice = choices.narrowed((*choice[:group], index, *choice[group + 1 :]), rng)
    return next(other for other in choices.all_fitting() if other not in seen)
