"""What a study asks for and what it finds."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from kvtuner_core.domain.metrics import ErrorProfile, Interval, PolicyScore
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.scores import SweepScores
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.domain.strategy import Constraints, SearchStrategy
from kvtuner_core.errors import InputError


class NoiseRule(StrEnum):
    """What happens to layers that DBSCAN calls noise: each ``ALONE``, or all in one ``TOGETHER`` group."""

    ALONE = "alone"
    TOGETHER = "together"


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningOptions:
    """Pair pruning, intra-layer (KVTuner, section 5.1).

    Attributes:
        enabled: Whether dominated pairs are dropped at all.
        tolerance: A pair is dominated only if another is no wider and its output error is lower
            by more than this (absolute); 0 is as published.
        uniform_choices: Whether every layer group may also choose the swept pairs of the uniform
            baselines, even where a layer's own errors dropped them. A layer's output error does not
            tell what it costs end to end; with them a search starts no worse than any uniform policy.
    """

    enabled: bool = True
    tolerance: float = 0.0
    uniform_choices: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingOptions:
    """Layer grouping, inter-layer (KVTuner, section 5.2): DBSCAN on vectors of output errors.

    Attributes:
        enabled: Whether layers share a choice at all; without, each layer is a group.
        eps: Largest Euclidean distance between neighbours.
        min_samples: Neighbours, itself included, that make a layer a core of a group.
        noise: What layers without a group become.
    """

    enabled: bool = True
    eps: float = 0.05
    min_samples: int = 2
    noise: NoiseRule = NoiseRule.ALONE


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that share one choice of pair.

    Attributes:
        layers: Indices among the cached layers, ascending; not necessarily neighbours.
        pairs: The pairs the group may choose from, most bits first.
        noise: Whether DBSCAN left it over.
    """

    layers: tuple[int, ...]
    pairs: tuple[PrecisionPair, ...]
    noise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What pruning and grouping left of the candidates.

    Attributes:
        candidates: All pairs that were swept.
        kept: Surviving pairs per layer.
        groups: The layer groups.
    """

    candidates: tuple[PrecisionPair, ...]
    kept: tuple[tuple[PrecisionPair, ...], ...]
    groups: tuple[LayerGroup, ...]

    @property
    def log10_before(self) -> float:
        """Log10 of the number of policies before pruning and grouping."""
        return len(self.kept) * math.log10(len(self.candidates))

    @property
    def log10_pruned(self) -> float:
        """Log10 of the number of policies after pruning, before grouping."""
        return sum(math.log10(len(pairs)) for pairs in self.kept)

    @property
    def log10_after(self) -> float:
        """Log10 of the number of policies the search chooses from."""
        return sum(math.log10(len(group.pairs)) for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """A sensitivity sweep.

    Attributes:
        model: Which model.
        scheme: Grouping and rounding.
        bits: Candidate bit widths; the pairs are all their combinations.
        prompts: Name of a shipped calibration set, or a file's path, or ``upload:DIGEST``.
        limit: Number of prompts taken from the set's start.
        prefix_tokens: Tokens read first and quantised.
        suffix_tokens: Tokens scored.
        seed: Seed of everything random.
        pruning: Options of pair pruning.
        grouping: Options of layer grouping.
        scores: Whether gradients and weights score the layers, too.
        compare_scores: Whether the policies that each score would pick are evaluated.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    scheme: QuantScheme = field(default_factory=QuantScheme.per_token)
    bits: tuple[int, ...] = (2, 4, 8)
    prompts: str = "calibration"
    limit: int = 6
    prefix_tokens: int = 512
    suffix_tokens: int = 24
    seed: int = 0
    pruning: PruningOptions = field(default_factory=PruningOptions)
    grouping: GroupingOptions = field(default_factory=GroupingOptions)
    scores: bool = True
    compare_scores: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """A search on top of a sweep.

    Attributes:
        sweep: The sweep it starts from; its calibration prompts also score the candidates.
        evaluations: Number of different policies scored on calibration prompts, baselines left out.
        population: Individuals of a generation.
        max_bits: Largest effective bits of a candidate, or ``None``.
        evaluation_prompts: Set on which the front is scored again.
        evaluation_limit: Number of prompts taken from it.
        evaluation_suffix_tokens: Tokens scored in each of them.
        strategy: How policies are chosen.
        constraints: What policies must keep to, beside ``max_bits``.
        objective: What is minimised beside the bits.
        stop_early: Whether an evaluation ends once its policy is dominated for certain; the objective
            must be `Objective.bounded`.
    """

    sweep: SweepSpec = field(default_factory=SweepSpec)
    evaluations: int = 200
    population: int = 50
    max_bits: float | None = None
    evaluation_prompts: str = "evaluation"
    evaluation_limit: int = 12
    evaluation_suffix_tokens: int = 32
    strategy: SearchStrategy = SearchStrategy.AUTO
    constraints: Constraints = field(default_factory=Constraints)
    objective: Objective = Objective.MEAN_KL
    stop_early: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        spec: What was asked.
        model: The model, fingerprint included.
        profiles: One per layer and pair.
        space: Pairs kept, and layer groups.
        provenance: Device, dtype, versions, time.
        seconds: Wall time; little where measurements were reused.
        prompts_digest: `PromptSet.digest` of the calibration prompts.
        scores: What gradients and weights say of the layers; none in older results, or where not asked for.
    """

    spec: SweepSpec
    model: ModelInfo
    profiles: tuple[ErrorProfile, ...]
    space: SearchSpace
    provenance: Provenance
    seconds: float
    prompts_digest: str = ""
    scores: SweepScores | None = None


class CandidateOrigin(StrEnum):
    """Whether a candidate was searched or is a uniform baseline."""

    SEARCH = "search"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy with what was measured of it.

    Attributes:
        policy: The policy.
        origin: Searched or baseline.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: Bits per scalar with scales, offsets and padding; windows left out.
        calibration: Score on the calibration prompts, which the search saw.
        evaluation: Score on the evaluation prompts, which it did not; only for the front and the
            baselines.
        order: Position in which it was evaluated, from 0.
        asked: Position in which its solver asked for it, from 0; ``None`` where that was not kept. A batch
            is evaluated in another order, which says nothing about what fewer evaluations would have found.
    """

    policy: KVPolicy
    origin: CandidateOrigin
    nominal_bits: float
    effective_bits: float
    calibration: PolicyScore
    evaluation: PolicyScore | None = None
    order: int = 0
    asked: int | None = None

    @property
    def kl(self) -> Interval:
        """KL on the evaluation prompts where there is one, else on the calibration prompts."""
        return (self.evaluation or self.calibration).kl

    def value(self, objective: Objective) -> Interval:
        """An objective on the evaluation prompts where there is one, else on the calibration prompts."""
        return (self.evaluation or self.calibration).interval(objective)

    def loss(self, objective: Objective) -> float:
        """What the search minimised: the objective's loss on the calibration prompts."""
        return self.calibration.loss(objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedCandidate:
    """A policy whose evaluation was stopped, because another candidate is better for certain.

    Attributes:
        policy: The policy.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: With them.
        partial: What was seen of it on the calibration prompts.
        estimate: What its loss may be, no measured value: the strategy goes on with it, nothing else uses it.
        dominated_by: Order of the candidate that has no more bits and a smaller loss.
        order: Position in which it was evaluated, from 0.
    """

    policy: KVPolicy
    nominal_bits: float
    effective_bits: float
    partial: PartialScore
    estimate: float
    dominated_by: int
    order: int

    def loss(self, objective: Objective) -> float:
        """The estimate of the loss that it was stopped for.

        Raises:
            InputError: If that is another objective's.
        """
        if objective is not self.partial.objective:
            raise InputError(
                f"A stopped policy was seen for {self.partial.objective} only; got {objective}. Evaluate it to the end."
            )
        return self.estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        run: Id of the stored run.
        spec: What was asked.
        sweep: The sweep it started from.
        candidates: Every searched candidate that was evaluated to the end, in order of evaluation.
        front: The non-dominated ones by (effective bits, calibration loss), fewest bits first, each
            scored on the evaluation prompts too.
        baselines: Uniform policies and the unquantised one.
        hypervolume: Area dominated by the front in (effective bits, log10 of 1e-6 + calibration loss)
            below the reference point of 16 bits and `Objective.worst` (10 nats for the KL), as a share
            of the whole (0 to 1).
        provenance: Device, dtype, versions, time.
        seconds: Pairs of part (``sweep``, ``search``, ``evaluation``) and its wall time in seconds.
        evaluation_digest: `PromptSet.digest` of the evaluation prompts.
        shipped: Whether it came with the project.
        ranked_by: Score that KVmix's allocation ranked the layers by; empty under other strategies.
        stopped: The others, in order of evaluation.
    """

    run: str
    spec: SearchSpec
    sweep: SweepResult
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    baselines: tuple[Candidate, ...]
    hypervolume: float
    provenance: Provenance
    seconds: tuple[tuple[str, float], ...]
    evaluation_digest: str = ""
    shipped: bool = False
    ranked_by: str = ""
    stopped: tuple[StoppedCandidate, ...] = ()

    @property
    def evaluations(self) -> int:
        """Policies that the strategy asked for, those included whose evaluation was stopped."""
        return len(self.candidates) + len(self.stopped)

    @property
    def spared(self) -> tuple[int, int]:
        """Calibration prompts that stopping spared, one for each policy, and how many all evaluations would read."""
        scored = sum(item.calibration.prompts for item in self.candidates)
        stopped = sum(len(item.partial.tokens_per_prompt) for item in self.stopped)
        return sum(item.partial.left for item in self.stopped), scored + stopped
