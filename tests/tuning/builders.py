"""Short ways to write profiles, spaces and scores."""

from collections.abc import Generator, Mapping, Sequence

from kvtuner_core.domain.metrics import ErrorProfile, Interval, PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, CandidateOrigin, LayerGroup, SearchSpace, SearchSpec, SweepSpec
from kvtuner_core.tuning import PolicySearch

SCHEME = QuantScheme.per_token()


def pairs(names: str) -> tuple[PrecisionPair, ...]:
    return tuple(PrecisionPair.parse(name) for name in names.split())


def layer_profiles(errors: Mapping[str, float], *, layer: int = 0, kl: float | None = None) -> list[ErrorProfile]:
    return [
        ErrorProfile(
            layer=layer,
            pair=PrecisionPair.parse(name),
            key_error=error,
            value_error=error,
            score_error=error,
            output_error=error,
            kl=error if kl is None else kl,
        )
        for name, error in errors.items()
    ]


def geometry(layers: int, *, key_dim: int = 64, value_dim: int = 64) -> tuple[LayerGeometry, ...]:
    return (LayerGeometry(kv_heads=2, key_dim=key_dim, value_dim=value_dim),) * layers


def space(groups: Sequence[tuple[tuple[int, ...], str]]) -> SearchSpace:
    made = tuple(LayerGroup(layers=layers, pairs=pairs(names)) for layers, names in groups)
    kept = {layer: group.pairs for group in made for layer in group.layers}
    candidates = tuple(dict.fromkeys(pair for group in made for pair in group.pairs))
    return SearchSpace(candidates=candidates, kept=tuple(kept[layer] for layer in sorted(kept)), groups=made)


def score(kl: float) -> PolicyScore:
    return PolicyScore(
        kl=Interval(mean=kl, low=kl, high=kl),
        top1_agreement=1.0,
        nll_change=0.0,
        kl_per_prompt=(kl,),
        tokens_per_prompt=(8,),
        cache_bytes=1,
        seconds=0.0,
    )


def scored(bits: float, kl: float, *, order: int = 0, origin: CandidateOrigin = CandidateOrigin.SEARCH) -> Candidate:
    return Candidate(
        policy=KVPolicy.uniform("K4V4", layers=1, scheme=SCHEME),
        origin=origin,
        nominal_bits=bits,
        effective_bits=bits,
        calibration=score(kl),
        order=order,
    )


class TableScorer:
    """Scores by the sum of each layer's table entry, and remembers what it was asked."""

    def __init__(self, weights: Sequence[float], *, fault: float | None = None) -> None:
        self.weights = weights
        self.fault = fault
        self.asked: list[tuple[str, ...]] = []

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        for policy in policies:
            yield self.score(policy)

    def score(self, policy: KVPolicy) -> PolicyScore:
        names = tuple(layer.name for layer in policy.layers)
        self.asked.append(names)
        if self.fault is not None and len(self.asked) % 3 == 0:
            return score(self.fault)
        return score(additive_kl(policy, self.weights))


def additive_kl(policy: KVPolicy, weights: Sequence[float]) -> float:
    return sum(
        weight * (3.0 * 2.0 ** (-1.6 * layer.pair.key_bits) + 2.0 ** (-1.6 * layer.pair.value_bits))
        for weight, layer in zip(weights, policy.layers, strict=True)
    )


def table_profiles(weights: Sequence[float], names: str) -> tuple[ErrorProfile, ...]:
    """Profiles whose isolated KLs are the entries of `additive_kl`'s table."""
    return tuple(
        profile
        for layer, weight in enumerate(weights)
        for pair in pairs(names)
        for profile in layer_profiles(
            {pair.name: 2.0**-pair.nominal_bits},
            layer=layer,
            kl=additive_kl(KVPolicy.uniform(pair, layers=1, scheme=SCHEME), [weight]),
        )
    )


def policy_search(space_: SearchSpace, weights: Sequence[float], **changes: object) -> PolicySearch:
    """A search on `TableScorer`'s landscape; by default NSGA-II with 200 evaluations."""
    names = " ".join(pair.name for pair in space_.candidates)
    options: dict[str, object] = {"strategy": SearchStrategy.NSGA2, "evaluations": 200, "population": 50} | changes
    seed = options.pop("seed", 0)
    spec = SearchSpec(sweep=SweepSpec(scheme=SCHEME, seed=seed), **options)
    return PolicySearch(spec, space=space_, profiles=table_profiles(weights, names), geometry=geometry(len(weights)))
