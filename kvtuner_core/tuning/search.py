"""The search: NSGA-II over one pair per layer group (KVTuner, section 5.3).

The paper names MOEA/D, its code runs NSGA-II with a population of 50 and 200 evaluations, unseeded.
Here the run is seeded, and every evaluation is spent on a policy that was not scored before.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Scorer
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import Candidate, CandidateOrigin, SearchSpace
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choice, Choices

_TRIES = 30
_SMALLEST_POPULATION = 4


class NsgaSearch:
    """A seeded NSGA-II search; minimises effective bits and the mean calibration KL.

    A space with no more policies than ``evaluations`` is enumerated. Given the same scores the
    same policies are asked for in the same order, so an interrupted search is replayed from the
    stored scores and goes on.

    Args:
        space: Layer groups and their pairs.
        scheme: Grouping and rounding of every policy.
        geometry: Cache geometry per layer.
        evaluations: Number of different policies to score.
        population: Individuals of the population; at most half of ``evaluations`` is used, so that
            there is a second generation.
        seed: Seed of everything random.
        max_bits: Largest effective bits of a candidate, or ``None``.

    Raises:
        InputError: If a number is out of range, the space does not fit the model, or no policy is
            within ``max_bits``.
    """

    def __init__(
        self,
        space: SearchSpace,
        scheme: QuantScheme,
        geometry: tuple[LayerGeometry, ...],
        *,
        evaluations: int,
        population: int,
        seed: int,
        max_bits: float | None = None,
    ) -> None:
        for name, value, least in (("evaluations", evaluations, 1), ("population", population, 2), ("seed", seed, 0)):
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be a whole number from {least}; got {value!r}.")
        self._choices = Choices(space, scheme, geometry, max_bits=max_bits)
        self._geometry = geometry
        self._evaluations = evaluations
        self._population = max(_SMALLEST_POPULATION, min(population, evaluations // 2))
        self._seed = seed

    def candidates(self, scorer: Scorer) -> Iterator[Candidate]:
        """Yield each new candidate once it is scored, until the evaluations are used up.

        Args:
            scorer: Scores a policy on the calibration prompts.
        """
        few = tuple(islice(self._choices.all_fitting(), self._evaluations + 1))
        if len(few) <= self._evaluations:
            for order, choice in enumerate(few):
                yield self._scored(scorer, self._choices.policy(choice), order)
            return
        yield from self._evolve(scorer)

    def _evolve(self, scorer: Scorer) -> Iterator[Candidate]:
        from kvtuner_core.tuning.evolution import Evolution

        rng = np.random.default_rng(self._seed)
        start = self._start(rng)
        evolution = Evolution(sizes=self._choices.sizes, start=start, offspring=self._offspring(), seed=self._seed)
        seen: set[Choice] = set()
        while True:
            generation: list[tuple[Choice, float, float]] = []
            for wanted in evolution.ask() or start:
                choice = self._unseen(wanted, seen, rng)
                candidate = self._scored(scorer, self._choices.policy(choice), len(seen))
                seen.add(choice)
                generation.append((choice, candidate.effective_bits, candidate.calibration.kl.mean))
                yield candidate
                if len(seen) == self._evaluations:
                    return
            evolution.tell(generation)

    def _offspring(self) -> int:
        # Small generations select more often, which matters where evaluations are few.
        return max(_SMALLEST_POPULATION, self._population // 2)

    def _scored(self, scorer: Scorer, policy: KVPolicy, order: int) -> Candidate:
        return Candidate(
            policy=policy,
            origin=CandidateOrigin.SEARCH,
            nominal_bits=policy.nominal_bits,
            effective_bits=effective_bits(policy, self._geometry),
            calibration=scorer.score(policy),
            order=order,
        )

    def _start(self, rng: np.random.Generator) -> tuple[Choice, ...]:
        """The first generation: the extremes, the uniform policies, then random ones of all widths."""
        sizes = np.array(self._choices.sizes)
        widest = self._choices.narrowed((0,) * len(sizes), rng)
        chosen = dict.fromkeys((self._choices.narrowest, widest, *self._choices.uniform()))
        for level in np.linspace(0.0, 1.0, 4 * self._population):
            if len(chosen) >= self._population:
                break
            # Levels from both ends inwards and back, so that a short start still spans the bits.
            near = (level * 7.0 % 1.0) * (sizes - 1) + rng.normal(0.0, 0.7, len(sizes))
            choice = np.clip(np.rint(near), 0, sizes - 1)
            chosen.setdefault(self._choices.narrowed(tuple(int(index) for index in choice), rng))
        for choice in self._choices.all_fitting():
            if len(chosen) >= self._population:
                break
            chosen.setdefault(choice)
        return tuple(chosen)[: self._population]

    def _unseen(self, wanted: Choice, seen: set[Choice], rng: np.random.Generator) -> Choice:
        """``wanted`` where it is new and fits, else a neighbour that is; there always is one left."""
        choice = self._choices.narrowed(wanted, rng)
        for _ in range(_TRIES):
            if choice not in seen:
                return choice
            group = int(rng.integers(len(choice)))
            index = int(rng.integers(self._choices.sizes[group]))
            choice = self._choices.narrowed((*choice[:group], index, *choice[group + 1 :]), rng)
        return next(other for other in self._choices.all_fitting() if other not in seen)
