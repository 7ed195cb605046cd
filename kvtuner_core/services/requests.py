"""Checks of what is asked, before any work, and the worker sessions that follow from it."""

from kvtuner_core.domain.memory import check_layers
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.prompts import MIN_PREFIX, MIN_SUFFIX, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import SearchSpec, SweepSpec
from kvtuner_core.domain.tasks import EvaluationSpec
from kvtuner_core.errors import InputError, PromptError
from kvtuner_core.services.prompts import resolve_prompts
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.tuning.stopping import check_bounded

MAX_EVALUATIONS = 100_000
MAX_TOKENS = 1_048_576
MAX_SEED = 2**31 - 1


def check_between(name: str, value: int, low: int, high: int) -> None:
    """Raise `InputError` unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}; got {value}.")


def check_sweep(spec: SweepSpec) -> None:
    """Raise `InputError` for a sweep that cannot be run on any model."""
    candidate_pairs(spec.bits)
    check_between("limit", spec.limit, 1, 100_000)
    check_between("prefix_tokens", spec.prefix_tokens, MIN_PREFIX, MAX_TOKENS)
    check_between("suffix_tokens", spec.suffix_tokens, MIN_SUFFIX, MAX_TOKENS)
    check_between("seed", spec.seed, 0, MAX_SEED)
    if not 0 < spec.grouping.eps < float("inf"):
        raise InputError(f"eps must be a number above 0; got {spec.grouping.eps!r}.")
    check_between("min_samples", spec.grouping.min_samples, 1, 10_000)
    if spec.compare_scores and not spec.scores:
        raise InputError("Scores are compared where there are some; got compare_scores without scores. Ask for both.")


def check_search(spec: SearchSpec) -> None:
    """Raise `InputError` for a search that cannot be run on any model."""
    check_sweep(spec.sweep)
    check_between("evaluations", spec.evaluations, 1, MAX_EVALUATIONS)
    check_between("population", spec.population, 2, 10_000)
    check_between("evaluation_limit", spec.evaluation_limit, 1, 100_000)
    check_between("evaluation_suffix_tokens", spec.evaluation_suffix_tokens, MIN_SUFFIX, MAX_TOKENS)
    if spec.max_bits is not None and not 0 < spec.max_bits < float("inf"):
        raise InputError(f"max_bits must be a number above 0; got {spec.max_bits!r}.")
    if spec.stop_early:
        check_bounded(spec.objective)
    if spec.constraints.max_pairs is not None:
        check_between("max_pairs", spec.constraints.max_pairs, 1, 100)


def check_scheme(scheme: QuantScheme, info: ModelInfo) -> None:
    """Raise `SchemeError` unless the scheme's groups fit the model's heads."""
    check_layers(KVPolicy.uniform("KV4", layers=len(info.layers), scheme=scheme), info.layers)


def calibration_prompts(ws: Workspace, spec: SweepSpec) -> PromptSet:
    """The prompts a sweep and a search may see.

    Raises:
        PromptError: If they cannot be read, or are a shipped evaluation set.
    """
    prompts = resolve_prompts(ws, spec.prompts, limit=spec.limit)
    if prompts.role is PromptRole.EVALUATION:
        raise PromptError(
            f"A sweep or search must not see evaluation prompts; got {spec.prompts!r}. Use calibration or a file."
        )
    return prompts


def evaluation_prompts(ws: Workspace, spec: SearchSpec, calibration: PromptSet) -> PromptSet:
    """The prompts on which a search's front is scored again.

    Raises:
        PromptError: If they cannot be read, or share a text with the calibration prompts.
    """
    prompts = resolve_prompts(ws, spec.evaluation_prompts, limit=spec.evaluation_limit)
    shared = set(prompts.prompts) & set(calibration.prompts)
    if shared or prompts.role is PromptRole.CALIBRATION:
        what = f"{len(shared)} shared texts" if shared else "a shipped calibration set"
        raise PromptError(
            f"Evaluation prompts must be other texts than calibration prompts; {spec.evaluation_prompts!r} has {what}. "
            "Use evaluation or another file."
        )
    return prompts


def calibration_session(ws: Workspace, spec: SweepSpec) -> EvaluationSpec:
    """The worker session of a sweep, and of a search's candidates."""
    return EvaluationSpec(
        model=spec.model,
        prompts=calibration_prompts(ws, spec),
        scheme=spec.scheme,
        prefix_tokens=spec.prefix_tokens,
        suffix_tokens=spec.suffix_tokens,
        seed=spec.seed,
    )


def evaluation_session(ws: Workspace, spec: SearchSpec, calibration: PromptSet) -> EvaluationSpec:
    """The worker session in which a search's front is scored again."""
    return EvaluationSpec(
        model=spec.sweep.model,
        prompts=evaluation_prompts(ws, spec, calibration),
        scheme=spec.sweep.scheme,
        prefix_tokens=spec.sweep.prefix_tokens,
        suffix_tokens=spec.evaluation_suffix_tokens,
        seed=spec.sweep.seed,
    )
