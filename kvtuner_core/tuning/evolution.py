"""pymoo's NSGA-II (Deb et al. 2002) and MOEA/D (Zhang and Li 2007) over tuples of integers, ask-and-tell.

Importing this module imports pymoo.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.moead import ParallelMOEAD
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.algorithm import Algorithm
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.decomposition.tchebicheff import Tchebicheff
from pymoo.operators.crossover.ux import UX
from pymoo.problems.static import StaticProblem

from kvtuner_core.tuning.choices import Choice
from kvtuner_core.tuning.front import KL_FLOOR, REFERENCE_BITS, REFERENCE_KL

_WORST_KL = 1e6
_NEIGHBOURS = 10


class _StepMutation(Mutation):  # type: ignore[misc]
    """Each index moves with probability 1/groups: mostly one step, now and then anywhere."""

    def _do(
        self, problem: Any, x: NDArray[Any], *_args: Any, random_state: Any = None, **_options: Any
    ) -> NDArray[np.int64]:
        rows = np.asarray(x, dtype=np.int64)
        moved = random_state.random(rows.shape) < max(1.0 / problem.n_var, 0.05)
        steps = rows + random_state.choice(np.array([-1, 1]), size=rows.shape)
        anywhere = random_state.integers(problem.xl, problem.xu + 1, size=rows.shape)
        target = np.where(random_state.random(rows.shape) < 0.2, anywhere, steps)
        return np.clip(np.where(moved, target, rows), problem.xl, problem.xu)


class Evolution:
    """One run; the caller may change what was asked before telling its scores.

    Args:
        sizes: Number of pairs of each group.
        start: The first generation.
        offspring: Choices per later generation.
        seed: Seed of selection, crossover and mutation.
        decomposed: Whether MOEA/D runs in place of NSGA-II: one weighting of bits and log KL per
            individual of ``start``, Tchebycheff distance, mating among neighbours.
    """

    def __init__(
        self, *, sizes: Choice, start: Sequence[Choice], offspring: int, seed: int, decomposed: bool = False
    ) -> None:
        upper = np.array(sizes, dtype=np.int64) - 1
        self._problem = Problem(n_var=len(sizes), n_obj=2, xl=np.zeros_like(upper), xu=upper, vtype=int)
        self._scaled = decomposed
        build = _decomposition if decomposed else _domination
        self._algorithm = build(np.array(start, dtype=np.int64), offspring)
        self._algorithm.setup(self._problem, seed=seed)

    def ask(self) -> tuple[Choice, ...]:
        """The choices of the next generation; empty where mating finds nothing new."""
        asked = self._algorithm.ask()
        if asked is None:
            return ()
        return tuple(tuple(int(index) for index in individual.X) for individual in asked)

    def tell(self, scored: Sequence[tuple[Choice, float, float]]) -> None:
        """Take in a generation.

        Args:
            scored: Choice, effective bits, and KL in nats per token. The KL enters as the log10 of
                1e-6 + KL, which leaves dominance as it is and spreads the crowding distance over
                the decades; what is not a finite number counts as the worst.
        """
        rows = np.array([choice for choice, _, _ in scored], dtype=np.int64)
        goals = np.array([self._goals(bits, kl) for _, bits, kl in scored], dtype=np.float64)
        population = Population.new("X", rows)
        Evaluator().eval(StaticProblem(self._problem, F=goals), population)
        self._algorithm.tell(infills=population)

    def _goals(self, bits: float, kl: float) -> tuple[float, float]:
        if not self._scaled:
            return bits, log_kl(kl)
        # Weights only mean something where both goals span about the same range.
        return bits / REFERENCE_BITS, (log_kl(kl) - log_kl(0.0)) / (log_kl(REFERENCE_KL) - log_kl(0.0))


def log_kl(kl: float) -> float:
    """Log10 of 1e-6 + ``kl``, the worst KL where it is not a finite number."""
    bounded = min(max(kl, 0.0), _WORST_KL) if math.isfinite(kl) else _WORST_KL
    return math.log10(KL_FLOOR + bounded)


def _domination(start: NDArray[np.int64], offspring: int) -> Algorithm:
    return NSGA2(
        pop_size=len(start),
        n_offsprings=offspring,
        sampling=start,
        crossover=UX(),
        mutation=_StepMutation(),
        eliminate_duplicates=True,
        termination=NoTermination(),
    )


def _decomposition(start: NDArray[np.int64], offspring: int) -> Algorithm:
    share = np.linspace(0.0, 1.0, len(start))
    return ParallelMOEAD(
        np.column_stack([share, 1.0 - share]),
        n_neighbors=min(_NEIGHBOURS, len(start)),
        n_offsprings=offspring,
        decomposition=Tchebicheff(),
        sampling=start,
        crossover=UX(),
        mutation=_StepMutation(),
        termination=NoTermination(),
    )
