"""The forms of a sweep and a search: widgets in, checked values out."""

from dataclasses import dataclass

import streamlit as st

from kvtuner_core.domain.model import BUNDLED_MODEL, DeviceChoice, DtypeChoice, ModelSpec
from kvtuner_core.domain.prompts import MIN_PREFIX, MIN_SUFFIX, PromptRole
from kvtuner_core.domain.study import GroupingOptions, NoiseRule, PruningOptions, SearchSpec, SweepSpec
from kvtuner_core.errors import InputError
from kvtuner_core.services import models, prompts
from kvtuner_core.services.planning import Plan
from pages.components import address, schemes, strategies
from pages.components.wording import count, duration, plain
from pages.components.workspace import workspace

NOISE = {NoiseRule.ALONE.value: "each alone", NoiseRule.TOGETHER.value: "all together"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCut:
    """Which prompts are read, and how."""

    reference: str
    limit: int
    suffix: int


def model_spec(*, wide: bool = False) -> ModelSpec:
    """Ask for a model, its device and dtype; side by side where there is the room."""
    choices = models.list_models(workspace())
    if wide:
        first, left, right = st.columns([3, 1, 1])
    else:
        first, (left, right) = st.container(), st.columns(2)
    reference = first.selectbox(
        "Model",
        [choice.reference for choice in choices],
        accept_new_options=True,
        key="model",
        bind="query-params",
        help="The bundled model, or type a folder in Hugging Face layout, a .gguf file, or a hub id.",
    )
    missing = {choice.reference: choice.hint for choice in choices if not choice.available}
    if reference in missing:
        st.warning(plain(f"{reference}: {missing[reference]}"), icon=":material/download:")
    device = left.selectbox(
        "Device", list(DeviceChoice), key="device", bind="query-params", help="auto: CUDA, else CPU"
    )
    dtype = right.selectbox(
        "Number format",
        list(DtypeChoice),
        key="dtype",
        bind="query-params",
        help="auto: bfloat16 on CUDA, else float32",
    )
    return ModelSpec(
        reference=(reference or BUNDLED_MODEL).strip(),
        device=DeviceChoice(device or "auto"),
        dtype=DtypeChoice(dtype or "auto"),
    )


def prompt_cut(role: PromptRole, *, limit: int, suffix: int) -> PromptCut:
    """Ask for a prompt set of a role (or an uploaded one), how many prompts, and how many tokens are scored."""
    name = role.value
    offered = {
        info.reference: f"{info.name} ({info.count})"
        for info in prompts.list_prompt_sets(workspace())
        if info.role in (role, PromptRole.USER)
    }
    if not offered:
        raise InputError(f"There is no {name} prompt set. Upload one on the Model page.")
    reference = address.choose(f"{name.capitalize()} prompts", offered, name=name, page="form", default=name)
    left, right = st.columns(2)
    number = left.number_input("Prompts, at most", 1, 2000, limit, key=f"{name}_limit", bind="query-params")
    tokens = right.number_input(
        "Scored tokens, each", MIN_SUFFIX, 4096, suffix, key=f"{name}_suffix", bind="query-params"
    )
    return PromptCut(reference=reference, limit=int(number), suffix=int(tokens))


def sweep_spec() -> SweepSpec:
    """Ask for everything a sweep needs.

    Raises:
        InputError: If a choice breaks a rule.
    """
    default = SweepSpec()
    what, how, measured = st.columns(3, gap="large")
    with what:
        model = model_spec()
    with how:
        chosen = schemes.scheme()
    with measured:
        bits = st.pills(
            "Bits to choose from",
            [16, 8, 4, 3, 2],
            selection_mode="multi",
            default=sorted(default.bits, reverse=True),
            key="bits",
            bind="query-params",
            help="Pairs are all combinations of key and value bits.",
        )
        cut = prompt_cut(PromptRole.CALIBRATION, limit=default.limit, suffix=default.suffix_tokens)
    with st.popover("Prefix, seed, pruning, grouping, scores", icon=":material/tune:", key="more"):
        prefix, seed = _prefix_and_seed(default)
        pruning, grouping = _space_options()
        scored, compared = _score_options()
    if not bits:
        raise InputError("At least one bit width is needed; got none. Choose for example 8, 4 and 2.")
    return SweepSpec(
        model=model,
        scheme=chosen,
        bits=tuple(sorted(bits)),
        prompts=cut.reference,
        limit=cut.limit,
        prefix_tokens=prefix,
        suffix_tokens=cut.suffix,
        seed=seed,
        pruning=pruning,
        grouping=grouping,
        scores=scored,
        compare_scores=compared,
    )


def _prefix_and_seed(default: SweepSpec) -> tuple[int, int]:
    left, right = st.columns(2)
    prefix = left.number_input(
        "Prefix, tokens",
        MIN_PREFIX,
        131_072,
        default.prefix_tokens,
        step=64,
        key="prefix",
        bind="query-params",
        help="Tokens of each prompt that are read first and quantised.",
    )
    seed = right.number_input("Seed", 0, 2**31 - 1, default.seed, key="seed", bind="query-params")
    return int(prefix), int(seed)


def _space_options() -> tuple[PruningOptions, GroupingOptions]:
    left, right = st.columns(2)
    prune = left.toggle("Prune pairs", True, key="prune", bind="query-params", help="Drop dominated pairs per layer.")
    tolerance = right.number_input(
        "Tolerance, output error", 0.0, 1.0, 0.0, step=0.005, format="%.3f", key="tolerance", bind="query-params"
    )
    left, right = st.columns(2)
    group = left.toggle("Group layers", True, key="grouping", bind="query-params", help="DBSCAN on output errors.")
    eps = right.number_input(
        "Distance (eps), output error", 0.001, 10.0, 0.05, step=0.01, format="%.3f", key="eps", bind="query-params"
    )
    left, right = st.columns(2)
    least = left.number_input("Neighbours of a core layer", 1, 64, 2, key="min_samples", bind="query-params")
    with right:
        noise = address.choose("Layers without a group", NOISE, name="noise", page="form")
    return (
        PruningOptions(enabled=prune, tolerance=float(tolerance)),
        GroupingOptions(enabled=group, eps=float(eps), min_samples=int(least), noise=NoiseRule(noise)),
    )


def _score_options() -> tuple[bool, bool]:
    left, right = st.columns(2)
    scored = left.toggle(
        "Score layers", True, key="scores", bind="query-params", help="By gradients and weights; takes seconds."
    )
    compared = right.toggle(
        "Compare scores",
        key="compare_scores",
        bind="query-params",
        disabled=not scored,
        help="Also evaluate the policy that each score would pick.",
    )
    return scored, scored and compared


def search_spec() -> SearchSpec:
    """Ask for everything a search needs, its sweep included.

    Raises:
        InputError: If a choice breaks a rule.
    """
    default = SearchSpec()
    sweep = sweep_spec()
    effort, bound, judged = st.columns(3, gap="large")
    with effort:
        strategy = strategies.strategy()
        objective = strategies.objective()
        evaluations = st.number_input(
            "Evaluations",
            1,
            100_000,
            default.evaluations,
            step=50,
            key="evaluations",
            bind="query-params",
            help="Different policies scored on the calibration prompts.",
        )
        population = strategies.population(strategy, default)
        stops = strategies.stop_early(objective)
    with bound:
        limited = st.toggle("Limit the bits", key="limited", bind="query-params")
        most = st.number_input(
            "Most effective bits", 1.0, 16.0, 6.0, step=0.25, disabled=not limited, key="max_bits", bind="query-params"
        )
        constraints = strategies.constraints()
    with judged:
        cut = prompt_cut(PromptRole.EVALUATION, limit=default.evaluation_limit, suffix=default.evaluation_suffix_tokens)
    return SearchSpec(
        sweep=sweep,
        evaluations=int(evaluations),
        population=population,
        max_bits=float(most) if limited else None,
        evaluation_prompts=cut.reference,
        evaluation_limit=cut.limit,
        evaluation_suffix_tokens=cut.suffix,
        strategy=strategy,
        constraints=constraints,
        objective=objective,
        stop_early=stops,
    )


def show_cost(plan: Plan) -> None:
    """What the work will cost, and how much of it is there already."""
    known = f"{plan.known:,} of them are there already" if plan.known else "none of them is there yet"
    left = plan.total - plan.known
    time = (
        f"It takes {duration(plan.seconds)}."
        if plan.seconds is not None
        else "The first run will tell how long it takes."
    )
    if left == 0:
        time = "Nothing is left to measure."
    model = "" if plan.model_known else " The model is loaded first."
    st.markdown(plain(f"Up to {count(plan.total, 'measurement')}; {known}. {time}{model}"), width="stretch")
