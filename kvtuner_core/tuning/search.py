"""The search: one named strategy over the policies that a request allows."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import MappingProxyType

from kvtuner_core.domain.memory import cache_bytes, effective_bits
from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.ports import Scorer, StoppingScorer
from kvtuner_core.domain.scores import LayerNorms, ScoreName, SweepScores
from kvtuner_core.domain.strategy import Constraints, MemoryBound, SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchSpace, SearchSpec
from kvtuner_core.errors import InputError
from kvtuner_core.tuning import heuristics
from kvtuner_core.tuning.asking import Asking, Told, answered
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.constraints import constrained, layer_space, single_layers
from kvtuner_core.tuning.evolving import evolving_asking
from kvtuner_core.tuning.guided import additive_asking, guided_asking, spread_start
from kvtuner_core.tuning.scores import gradient_norms
from kvtuner_core.tuning.stopping import StoppingRounds
from kvtuner_core.tuning.surrogate import Surrogate

_WARM_SHARE = 2
"""The first generation of a warm start holds this fraction of surrogate points: one in two."""


class PolicySearch:
    """A seeded search; minimises effective bits and the objective on the calibration prompts.

    A space with no more policies than evaluations is enumerated, whichever strategy would choose
    from it. Given the same scores the same policies are asked for in the same order, so an
    interrupted search is replayed from the stored scores and goes on.

    Args:
        spec: Strategy, evaluations, population, seed, scheme, and the bounds on policies.
        space: The sweep's layer groups and pairs.
        profiles: The sweep's errors; their isolated KLs make the surrogate.
        geometry: Cache geometry per layer.
        norms: Gradient norms of each layer, which KVmix ranks by; without, it ranks by isolated KL.

    Raises:
        InputError: If a number is out of range, the space does not fit the model, or no policy is
            within the bounds.
    """

    def __init__(
        self,
        spec: SearchSpec,
        *,
        space: SearchSpace,
        profiles: Sequence[ErrorProfile],
        geometry: tuple[LayerGeometry, ...],
        norms: Sequence[LayerNorms] = (),
    ) -> None:
        numbers = (
            ("evaluations", spec.evaluations, 1),
            ("population", spec.population, 2),
            ("seed", spec.sweep.seed, 0),
        )
        for name, value, least in numbers:
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be a whole number from {least}; got {value!r}.")
        self.spec = spec
        self.geometry = geometry
        self.norms = tuple(norms)
        self.model = Surrogate.additive(profiles, spec.objective)
        self.choices = Choices(
            constrained(_SPACES.get(spec.strategy, layer_space)(space), spec.constraints),
            spec.sweep.scheme,
            geometry,
            max_bits=spec.max_bits,
            max_pairs=spec.constraints.max_pairs,
            memory=spec.constraints.memory,
        )

    def candidates(self, scorer: Scorer) -> Iterator[Candidate]:
        """Yield each new candidate once it is scored, until the evaluations are used up or nothing is left to ask.

        Args:
            scorer: Scores a policy on the calibration prompts.

        Raises:
            InputError: If the strategy has no policy within the bounds.
        """
        return (found for found in self._found(scorer) if isinstance(found, Candidate))

    def outcomes(self, scorer: StoppingScorer) -> Iterator[Told]:
        """As `candidates`; where the request has ``stop_early``, policies that are beaten for certain are stopped.

        Args:
            scorer: Scores a policy on the calibration prompts, to the end or until its bar is passed.

        Raises:
            InputError: If the strategy has no policy within the bounds, or the objective is not bounded.
        """
        stops = self.spec.stop_early
        return self._found(StoppingRounds(scorer, self.geometry, self.spec.objective) if stops else scorer)

    def _found(self, scorer: Scorer | StoppingRounds) -> Iterator[Told]:
        found = 0
        for outcome in answered(self._asking(), scorer, self.geometry, evaluations=self.spec.evaluations):
            found += 1
            yield outcome
        if not found:
            raise InputError(
                f"A strategy needs a policy within the bounds on bits and pairs; {self.spec.strategy} has none. "
                "Use auto, or widen the bounds."
            )

    @property
    def most(self) -> int:
        """Most policies that `candidates` may score."""
        if self.spec.strategy in _FIXED:
            # Their policies need not be of the space.
            return min(self.spec.evaluations, sum(len(batch) for batch in self._asking()))
        within = math.prod(min(size, self.spec.evaluations + 1) for size in self.choices.sizes)
        return min(self.spec.evaluations, within)

    def _asking(self) -> Asking:
        if self.spec.strategy in _FIXED:
            return self._keeping(_FIXED[self.spec.strategy](self))
        few = tuple(islice(self.choices.all_fitting(), self.spec.evaluations + 1))
        if len(few) <= self.spec.evaluations:
            return _listed(tuple(self.choices.policy(choice) for choice in few))
        return _SOLVERS[self.spec.strategy](self)

    def _keeping(self, asking: Asking) -> Asking:
        """A solver that knows no bounds: pinned layers are put in place, what breaks another bound is left out."""
        for batch in asking:
            moved = dict.fromkeys(_pinned(policy, self.spec.constraints) for policy in batch)
            yield tuple(policy for policy in moved if self._allows(policy))

    def _allows(self, policy: KVPolicy) -> bool:
        constraints, most = self.spec.constraints, self.spec.max_bits
        different = {layer.pair for layer in policy.layers}
        return (
            (most is None or effective_bits(policy, self.geometry) <= most * (1 + 1e-12))
            and (constraints.max_pairs is None or len(different) <= constraints.max_pairs)
            and _holds(constraints.memory, policy, self.geometry)
            and not any(policy.layers[rule.layer].pair == rule.pair for rule in constraints.forbidden)
        )


def _holds(bound: MemoryBound | None, policy: KVPolicy, geometry: tuple[LayerGeometry, ...]) -> bool:
    if bound is None:
        return True
    return cache_bytes(policy, geometry, tokens=bound.context, batch=bound.batch) <= bound.max_bytes


def _pinned(policy: KVPolicy, constraints: Constraints) -> KVPolicy:
    if not constraints.pinned:
        return policy
    pairs = {rule.layer: LayerPrecision(pair=rule.pair) for rule in constraints.pinned}
    layers = tuple(pairs.get(index, layer) for index, layer in enumerate(policy.layers))
    return KVPolicy(scheme=policy.scheme, layers=layers)


def _listed(policies: tuple[KVPolicy, ...]) -> Asking:
    yield policies


def _auto(search: PolicySearch) -> Asking:
    spec = search.spec
    return guided_asking(search.choices, search.model, evaluations=spec.evaluations, seed=spec.sweep.seed)


def _evolve(search: PolicySearch, *, warm: bool = False, decomposed: bool = False) -> Asking:
    spec = search.spec
    most = max(2, min(spec.population, spec.evaluations // 2) // _WARM_SHARE)
    return evolving_asking(
        search.choices,
        evaluations=spec.evaluations,
        population=spec.population,
        seed=spec.sweep.seed,
        warm=spread_start(search.choices, search.model, most=most) if warm else (),
        decomposed=decomposed,
        objective=spec.objective,
    )


def _kvmix(search: PolicySearch) -> Asking:
    sides = gradient_norms(search.norms) if search.norms else heuristics.side_scores(search.model)
    return heuristics.kvmix_asking(sides, search.spec.sweep.scheme)


def ranked_by(strategy: SearchStrategy, norms: Sequence[LayerNorms]) -> str:
    """Name of the score that a strategy ranks layers by, where it does nothing else with them."""
    if strategy is not SearchStrategy.KVMIX:
        return ""
    return str(ScoreName.GRADIENT_NORM if norms else ScoreName.KL)


def norms_of(scores: SweepScores | None) -> tuple[LayerNorms, ...]:
    """The norms that a sweep has, if any."""
    return () if scores is None else scores.weights.layers


def _protected(search: PolicySearch) -> Asking:
    return heuristics.protected_asking(
        search.model.pairs,
        search.spec.sweep.scheme,
        layers=len(search.geometry),
        evaluations=search.spec.evaluations,
    )


def _as_is(space: SearchSpace) -> SearchSpace:
    return space


_SPACES: MappingProxyType[SearchStrategy, Callable[[SearchSpace], SearchSpace]] = MappingProxyType(
    {
        SearchStrategy.NSGA2: _as_is,
        SearchStrategy.NSGA2_WARM: _as_is,
        SearchStrategy.MOEAD: _as_is,
        SearchStrategy.NSGA2_LAYERS: single_layers,
    }
)

_SOLVERS: MappingProxyType[SearchStrategy, Callable[[PolicySearch], Asking]] = MappingProxyType(
    {
        SearchStrategy.AUTO: _auto,
        SearchStrategy.NSGA2: _evolve,
        SearchStrategy.NSGA2_WARM: lambda search: _evolve(search, warm=True),
        SearchStrategy.NSGA2_LAYERS: _evolve,
        SearchStrategy.MOEAD: lambda search: _evolve(search, decomposed=True),
        SearchStrategy.ADDITIVE: lambda search: additive_asking(
            search.choices, search.model, evaluations=search.spec.evaluations
        ),
        SearchStrategy.GREEDY: lambda search: heuristics.greedy_asking(
            search.choices, search.model, evaluations=search.spec.evaluations
        ),
        SearchStrategy.RANDOM: lambda search: heuristics.random_asking(
            search.choices, evaluations=search.spec.evaluations, seed=search.spec.sweep.seed
        ),
    }
)

_FIXED: MappingProxyType[SearchStrategy, Callable[[PolicySearch], Asking]] = MappingProxyType(
    {
        SearchStrategy.UNIFORM: lambda search: heuristics.uniform_asking(search.choices),
        SearchStrategy.KVMIX: _kvmix,
        SearchStrategy.PROTECTED: _protected,
    }
)
"""Solvers with a list of their own, however small the space is."""
