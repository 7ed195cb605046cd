"""A synthetic study in real domain values: shaped like a measured one, computed in milliseconds.

Keys matter more than values, the first layers matter most, one layer is an outlier, and the KL of a
policy is about the sum of its layers' effects, with noise over the prompts.
"""

import hashlib
import math
import zlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kvtuner_core.domain.memory import cache_bytes, effective_bits
from kvtuner_core.domain.metrics import ErrorProfile, Interval, PolicyScore
from kvtuner_core.domain.model import BUNDLED_MODEL, LayerGeometry, ModelInfo
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair, candidate_pairs
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.scores import ErrorScores, LayerNorms, PairScores, ScorePick, SweepScores, WeightScores
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import (
    Candidate,
    CandidateOrigin,
    SearchResult,
    SearchSpec,
    StoppedCandidate,
    SweepResult,
    SweepSpec,
)
from kvtuner_core.tuning import PolicySearch, baselines, build_space, hypervolume, pareto_front
from kvtuner_core.tuning.scores import implied_policy, score_table

_KEY_ERROR = {16: 0.0, 8: 0.006, 4: 0.09, 3: 0.2, 2: 0.55}
_VALUE_ERROR = {16: 0.0, 8: 0.005, 4: 0.075, 3: 0.17, 2: 0.36}


def model_info(layers: int = 30, *, sliding: int | None = None) -> ModelInfo:
    """The bundled model's geometry; with ``sliding``, every second layer has that window."""
    geometry = tuple(
        LayerGeometry(kv_heads=3, key_dim=64, value_dim=64, sliding_window=sliding if layer % 2 else None)
        for layer in range(layers)
    )
    return ModelInfo(
        reference=BUNDLED_MODEL,
        name="SmolLM2-135M-Instruct",
        architecture="LlamaForCausalLM",
        fingerprint=hashlib.sha256(f"weights {layers}".encode()).hexdigest(),
        geometry_digest=hashlib.sha256(repr(geometry).encode()).hexdigest(),
        layers=geometry,
        query_heads=9,
        hidden_size=576,
        max_positions=8192,
        vocabulary=49152,
        parameters=134_515_008,
    )


def provenance() -> Provenance:
    """Where the synthetic numbers claim to come from."""
    return Provenance(
        created="2026-11-20T09:30:00Z",
        device="cpu (2 threads)",
        device_type="cpu",
        dtype="float32",
        versions=(("kvtuner", "0.1.0"), ("torch", "2.13.0"), ("transformers", "5.23.0"), ("python", "3.11.9")),
    )


@lru_cache(maxsize=32)
def _sensitivity(layer: int, layers: int, seed: int) -> tuple[float, float, float]:
    """Factors of one layer: key error, value error, end-to-end effect."""
    rng = np.random.default_rng([seed, layer])
    depth = layer / max(1, layers - 1)
    early = 1.0 + 2.5 * math.exp(-layer / 1.5)
    outlier = 1.8 if layer == layers // 2 else 1.0
    # Layers come in kinds that are not neighbours in depth, so that grouping finds groups.
    kind = layer * 7 // 3 % 4
    keys, values = (0.7, 0.85, 1.05, 0.8)[kind], (0.8, 0.7, 0.9, 1.9)[kind]
    jitter = 1.0 + 0.02 * rng.standard_normal(3)
    return keys * outlier * jitter[0], values * jitter[1], early * outlier * (1.3 - 0.6 * depth) * jitter[2]


def profile(layer: int, pair: PrecisionPair, *, layers: int = 30, seed: int = 0) -> ErrorProfile:
    """The synthetic errors of one layer under one pair."""
    keys, values, effect = _sensitivity(layer, layers, seed)
    key_error = _KEY_ERROR[pair.key_bits] * keys
    value_error = _VALUE_ERROR[pair.value_bits] * values
    score_error = min(2.0, 1.1 * key_error)
    output_error = math.hypot(1.4 * key_error, 0.9 * value_error)
    kl = effect * (0.12 * key_error**2.2 + 0.012 * value_error**2)
    return ErrorProfile(
        layer=layer,
        pair=pair,
        key_error=key_error,
        value_error=value_error,
        score_error=score_error,
        output_error=output_error,
        kl=kl,
    )


def sweep_scores(layers: int = 30, *, bits: tuple[int, ...] = (2, 4, 8), seed: int = 0) -> SweepScores:
    """Scores that follow the synthetic KL more or less closely."""
    rng = np.random.default_rng([seed, 99])
    cells = [
        PairScores(
            layer=layer,
            pair=pair,
            gradient_error=3.0 * found.kl**0.5 * float(rng.lognormal(0.0, 0.4)),
            fisher_error=found.kl * float(rng.lognormal(0.0, 0.1)),
        )
        for layer in range(layers)
        for pair in candidate_pairs(bits)
        for found in [profile(layer, pair, layers=layers, seed=seed)]
    ]
    norms = tuple(
        LayerNorms(
            layer=layer,
            key_gradient=float(rng.lognormal(-2.0, 0.5)),
            value_gradient=float(rng.lognormal(-1.0, 0.5)),
            key_weight=float(rng.lognormal(4.0, 0.2)),
            value_weight=float(rng.lognormal(3.0, 0.2)),
        )
        for layer in range(layers)
    )
    return SweepScores(
        errors=ErrorScores(pairs=tuple(cells), probes=4, gradient_seconds=0.8, fisher_seconds=1.9),
        weights=WeightScores(layers=norms, absent="", tokens=256, gradient_seconds=5.6, weight_seconds=0.01),
    )


def picked(result: SweepResult, *, max_bits: float = 4.5) -> SweepScores:
    """The scores of a synthetic sweep with what each would pick within a bound."""
    table, scorer = score_table(result.profiles, result.scores), SyntheticScorer(result.model)
    picks = []
    for name in table.names:
        geometry, scheme = result.model.layers, result.spec.scheme
        policy = implied_policy(table, name, scheme=scheme, geometry=geometry, max_bits=max_bits)
        pick = ScorePick(
            score=name,
            max_bits=max_bits,
            policy=policy,
            effective_bits=effective_bits(policy, geometry),
            calibration=scorer.score(policy),
        )
        picks.append(pick)
    return replace(result.scores, picks=tuple(picks))


def sweep_spec(scheme: QuantScheme | None = None, **changes: object) -> SweepSpec:
    """A sweep of the bundled model."""
    return replace(SweepSpec(scheme=scheme or QuantScheme.per_token(group_size=32)), **changes)


@lru_cache(maxsize=8)
def sweep_result(
    *, layers: int = 30, bits: tuple[int, ...] = (2, 4, 8), seed: int = 0, scored: bool = False
) -> SweepResult:
    """A finished sweep, pruned and grouped by the real algorithms; with scores where asked for."""
    spec = sweep_spec(bits=bits, seed=seed)
    pairs = candidate_pairs(bits)
    profiles = tuple(profile(layer, pair, layers=layers, seed=seed) for layer in range(layers) for pair in pairs)
    return SweepResult(
        spec=spec,
        model=model_info(layers),
        profiles=profiles,
        space=build_space(profiles, spec.pruning, spec.grouping),
        provenance=provenance(),
        seconds=48.5,
        scores=sweep_scores(layers, bits=bits, seed=seed) if scored else None,
    )


@dataclass(frozen=True)
class SyntheticScorer:
    """Scores a policy as the sum of its layers' effects, the same policy always alike.

    Attributes:
        info: The model.
        prompts: Number of prompts.
        suffix_tokens: Scored tokens of each.
        seed: Of the noise over prompts; another seed stands for other prompts.
    """

    info: ModelInfo
    prompts: int = 6
    suffix_tokens: int = 24
    seed: int = 0

    def score_many(self, policies: Sequence[KVPolicy]) -> Generator[PolicyScore, None, None]:
        """The synthetic score of each policy, in order."""
        for policy in policies:
            yield self.score(policy)

    def score(self, policy: KVPolicy) -> PolicyScore:
        """The synthetic score of ``policy``."""
        layers = len(policy.layers)
        total = sum(
            sum(profile(index, pair, layers=layers).kl for pair in precision.pairs) / len(precision.pairs)
            for index, precision in enumerate(policy.layers)
        )
        mixed = 0.0 if policy.is_full else 1e-6 + total + 0.5 * total**1.5
        names = zlib.crc32(" ".join(precision.name for precision in policy.layers).encode())
        noise = np.random.default_rng([self.seed, self.prompts]).lognormal(0.0, 0.35, self.prompts)
        noise *= np.random.default_rng([self.seed, names]).lognormal(0.0, 0.05, self.prompts)
        per_prompt = tuple(float(value) for value in mixed * noise)
        mean = float(np.mean(per_prompt))
        spread = 1.96 * float(np.std(per_prompt)) / math.sqrt(self.prompts)
        return PolicyScore(
            kl=Interval(mean=mean, low=max(0.0, mean - spread), high=mean + spread),
            top1_agreement=1.0 / (1.0 + 2.0 * math.sqrt(mean)),
            nll_change=0.6 * mean,
            kl_per_prompt=per_prompt,
            tokens_per_prompt=(self.suffix_tokens,) * self.prompts,
            cache_bytes=cache_bytes(policy, self.info.layers, tokens=536, full_bytes=4),
            seconds=0.9,
        )


class PassByPass(SyntheticScorer):
    """Reads two prompts a pass, and stops where a policy is beaten for certain."""

    def score_until(
        self, policies: Sequence[KVPolicy], bars: Sequence[float]
    ) -> Generator[PolicyScore | PartialScore, None, None]:
        """The synthetic score of each policy, or what was seen of it."""
        for policy, bar in zip(policies, bars, strict=True):
            score = self.score(policy)
            stopped = PartialScore(
                objective=Objective.MEAN_KL,
                prompts=tuple(range(self.prompts)),
                losses=score.kl_per_prompt,
                ends=tuple(range(2, self.prompts + 1, 2)),
                tokens_per_prompt=score.tokens_per_prompt,
            ).within(bar)
            yield stopped if stopped is not None and stopped.left else score


def candidate(
    policy: KVPolicy, *, info: ModelInfo, order: int = 0, origin: CandidateOrigin = CandidateOrigin.SEARCH
) -> Candidate:
    """``policy`` scored on the synthetic calibration prompts."""
    return Candidate(
        policy=policy,
        origin=origin,
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, info.layers),
        calibration=SyntheticScorer(info).score(policy),
        order=order,
    )


def evaluated(item: Candidate, *, info: ModelInfo) -> Candidate:
    """``item`` scored on the synthetic evaluation prompts, too."""
    return replace(item, evaluation=SyntheticScorer(info, prompts=12, suffix_tokens=32, seed=1).score(item.policy))


@lru_cache(maxsize=8)
def search_result(
    *,
    layers: int = 30,
    evaluations: int = 120,
    seed: int = 0,
    run: str = "synthetic",
    shipped: bool = False,
    strategy: SearchStrategy = SearchStrategy.NSGA2,
    stop_early: bool = False,
) -> SearchResult:
    """A finished search by the real algorithm, its front evaluated, with its baselines."""
    swept = sweep_result(layers=layers, seed=seed)
    info, scheme = swept.model, swept.spec.scheme
    spec = SearchSpec(
        sweep=swept.spec, evaluations=evaluations, population=40, strategy=strategy, stop_early=stop_early
    )
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=info.layers)
    outcomes = tuple(search.outcomes(PassByPass(info)))
    searched = tuple(item for item in outcomes if isinstance(item, Candidate))
    front = tuple(evaluated(item, info=info) for item in pareto_front(searched))
    return SearchResult(
        run=run,
        spec=spec,
        sweep=swept,
        candidates=searched,
        front=front,
        baselines=tuple(
            evaluated(candidate(policy, info=info, origin=CandidateOrigin.BASELINE), info=info)
            for policy in baselines(layers=layers, scheme=scheme)
        ),
        hypervolume=hypervolume(searched),
        provenance=provenance(),
        seconds=(("sweep", 48.5), ("search", 131.0), ("evaluation", 22.4)),
        shipped=shipped,
        stopped=tuple(item for item in outcomes if isinstance(item, StoppedCandidate)),
    )
