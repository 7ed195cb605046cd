"""The part of a search's form that says how policies are chosen and what they must keep to."""

import streamlit as st

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.strategy import Constraints, LayerPair, MemoryBound, SearchStrategy
from kvtuner_core.domain.study import SearchSpec
from pages.components import address

NAMES = {
    SearchStrategy.AUTO.value: "auto: exact additive front, refitted",
    SearchStrategy.NSGA2.value: "NSGA-II over groups, as published",
    SearchStrategy.NSGA2_WARM.value: "NSGA-II over groups, warm start",
    SearchStrategy.NSGA2_LAYERS.value: "NSGA-II, each layer alone",
    SearchStrategy.MOEAD.value: "MOEA/D over groups",
    SearchStrategy.ADDITIVE.value: "additive optimum",
    SearchStrategy.GREEDY.value: "greedy",
    SearchStrategy.KVMIX.value: "KVmix allocation",
    SearchStrategy.RANDOM.value: "random",
    SearchStrategy.UNIFORM.value: "uniform",
    SearchStrategy.PROTECTED.value: "first and last layers protected",
}
"""What each strategy is called in the form."""


def strategy() -> SearchStrategy:
    """Ask how policies are chosen."""
    return SearchStrategy(address.choose("Strategy", NAMES, name="strategy", page="form", default="auto"))


def objective() -> Objective:
    """Ask what is minimised beside the bits."""
    named = {item.value: item.with_unit for item in Objective}
    return Objective(address.choose("Minimise", named, name="objective", page="form", default="mean-kl"))


def stop_early(chosen: Objective) -> bool:
    """Ask whether policies that are beaten for certain are left; not of an objective that has no lower bound."""
    stops = st.toggle(
        "Stop beaten policies",
        key="stop_early",
        bind="query-params",
        disabled=not chosen.bounded,
        help="An evaluation ends once its policy is off the front for certain. It spares time where prompts take "
        "several passes and many poor policies are tried; not of a percentile or a change of likelihood.",
    )
    return stops and chosen.bounded


def population(chosen: SearchStrategy, default: SearchSpec) -> int:
    """Ask for the population; only NSGA-II and MOEA/D have one."""
    number = st.number_input(
        "Population",
        2,
        10_000,
        default.population,
        step=10,
        key="population",
        bind="query-params",
        disabled=not (chosen is SearchStrategy.MOEAD or chosen.value.startswith("nsga2")),
        help="Policies of one generation of NSGA-II or MOEA/D.",
    )
    return int(number)


def constraints() -> Constraints:
    """Ask for the bounds on pairs and layers.

    Raises:
        InputError: If a layer and its pair are not written like ``3:K8V4``.
    """
    with st.popover("More bounds", icon=":material/rule:", key="bounds"):
        most = st.number_input(
            "Different pairs, at most (0: any)",
            0,
            25,
            0,
            key="max_pairs",
            bind="query-params",
            help="Engines often take two or three.",
        )
        memory = _memory()
        pinned = st.text_input(
            "Pinned layers", key="pin", bind="query-params", placeholder="0:K8V8 1:K8V8", help="Layers count from 0."
        )
        forbidden = st.text_input("Forbidden pairs", key="forbid", bind="query-params", placeholder="0:K4V2 29:K2V2")
    return Constraints(max_pairs=int(most) or None, pinned=_rules(pinned), forbidden=_rules(forbidden), memory=memory)


def _memory() -> MemoryBound | None:
    most, batch, context = st.columns(3)
    gib = most.number_input(
        "Most GiB",
        0.0,
        100_000.0,
        0.0,
        step=0.5,
        format="%.3f",
        key="max_gib",
        bind="query-params",
        help="Of the whole cache at the batch and tokens beside it, windows and sinks included. 0: any size.",
    )
    sequences = batch.number_input("Batch", 1, 100_000, 1, key="bound_batch", bind="query-params")
    tokens = context.number_input("Tokens", 1, 10_000_000, 8192, step=1024, key="bound_context", bind="query-params")
    return MemoryBound(max_gib=float(gib), batch=int(sequences), context=int(tokens)) if gib else None


def _rules(text: str | None) -> tuple[LayerPair, ...]:
    return tuple(LayerPair.parse(part) for part in (text or "").replace(",", " ").split())
