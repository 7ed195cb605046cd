"""One policy measured on one prompt set."""

from collections.abc import Generator
from dataclasses import dataclass

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_PAIR
from kvtuner_core.domain.prompts import MIN_PREFIX, MIN_SUFFIX
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.services.measuring import Measurements, stamped
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.policies import Match, PolicyChoice
from kvtuner_core.services.prompts import resolve_prompts
from kvtuner_core.services.requests import MAX_SEED, MAX_TOKENS, check_between
from kvtuner_core.services.work import Cancelled, never
from kvtuner_core.services.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        model: Which model.
        policy: Which policy; none means the unquantised one.
        prompts: A shipped name, a file, or an upload.
        limit: Number of prompts from the set's start, or ``None`` for all.
        prefix_tokens: Tokens read first and quantised.
        suffix_tokens: Tokens scored.
        seed: Seed of the bootstrap.
        match: How closely the model must be the policy's.
    """

    model: ModelSpec
    policy: PolicyChoice
    prompts: str = "evaluation"
    limit: int | None = None
    prefix_tokens: int = 512
    suffix_tokens: int = 128
    seed: int = 0
    match: Match = Match.WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        policy: The policy.
        model: The model.
        score: The measurement.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: With them.
        provenance: Device, dtype, versions, time.
        reused: Whether the measurement was stored already.
    """

    policy: KVPolicy
    model: ModelInfo
    score: PolicyScore
    nominal_bits: float
    effective_bits: float
    provenance: Provenance
    reused: bool


def evaluate(
    ws: Workspace, request: EvaluationRequest, cancelled: Cancelled = never
) -> Generator[Progress, None, Evaluation]:
    """Score one policy on one prompt set; a stored score is used again.

    Raises:
        InputError: If the request does not fit.
        CancelledError: If somebody asked to stop.
    """
    check_between("prefix_tokens", request.prefix_tokens, MIN_PREFIX, MAX_TOKENS)
    check_between("suffix_tokens", request.suffix_tokens, MIN_SUFFIX, MAX_TOKENS)
    check_between("seed", request.seed, 0, MAX_SEED)
    prompts = resolve_prompts(ws, request.prompts, limit=request.limit)
    report = yield from ensure_report(ws, request.model, cancelled)
    policy = request.policy.for_model(report.info, request.match) or KVPolicy.uniform(
        FULL_PAIR, layers=len(report.info.layers), scheme=QuantScheme.per_token()
    )
    session = EvaluationSpec(
        model=request.model,
        prompts=prompts,
        scheme=policy.scheme,
        prefix_tokens=request.prefix_tokens,
        suffix_tokens=request.suffix_tokens,
        seed=request.seed,
    )
    measurements = Measurements.of(ws, session, report, cancelled)
    yield Progress(stage="evaluation", done=0, total=1, message=f"{policy.name} on {len(prompts.prompts)} prompts")
    score = measurements.score(policy)
    yield Progress(stage="evaluation", done=1, total=1, reused=measurements.reused, message=policy.name, event=score)
    return Evaluation(
        policy=policy,
        model=report.info,
        score=score,
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, report.info.layers),
        provenance=stamped(report),
        reused=measurements.reused > 0,
    )
