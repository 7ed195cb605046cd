"""Policies of a search on a page: their names, numbers side by side, and files."""

from collections.abc import Iterable, Mapping
from typing import Any

import streamlit as st

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_PAIR
from kvtuner_core.domain.study import Candidate, CandidateOrigin, SearchResult
from kvtuner_core.services import picking, policies, trust
from pages.components import charts, headlines
from pages.components.wording import GIB, gib, nats, share

SNIPPET = """from kvtuner_core import load_policy

cache = load_policy("policy.json").build_cache(model)
model.generate(**inputs, past_key_values=cache)"""
"""How a program uses the file."""


def identity(candidate: Candidate) -> str:
    """What stands for a candidate in an address: ``p17`` for the 17th searched one, ``K4V4`` for a baseline."""
    return candidate.policy.name if candidate.origin is CandidateOrigin.BASELINE else f"p{candidate.order}"


def offered(result: SearchResult) -> dict[str, Candidate]:
    """The front, fewest bits first, then the baselines, by identity."""
    return {identity(candidate): candidate for candidate in (*result.front, *result.baselines)}


def name(candidate: Candidate) -> str:
    """A short name: the uniform pair, or the identity with the effective bits."""
    if candidate.origin is CandidateOrigin.SEARCH:
        return f"{identity(candidate)}, {candidate.effective_bits:.2f} bits"
    return "full precision" if candidate.policy.is_full else f"uniform {candidate.policy.name}"


def labels(result: SearchResult) -> dict[str, str]:
    """One line for each offered policy, no two alike."""
    lines, objective = {}, result.spec.objective
    for key, item in offered(result).items():
        bits = "" if item.origin is CandidateOrigin.SEARCH else f" · {item.effective_bits:.2f} bits"
        lines[key] = f"{name(item)}{bits} · {objective.label} {nats(item.value(objective).mean)}"
    return lines


def numbers(candidate: Candidate, result: SearchResult, *, batch: int, context: int) -> dict[str, Any]:
    """One row of the comparison: quality on prompts the search did not see where known, and memory."""
    score = candidate.evaluation or candidate.calibration
    full = _full_gib(result, batch=batch, context=context)
    size = picking.candidate_gib(result, candidate, batch=batch, context=context)
    objective = result.spec.objective
    value = float(f"{score.interval(objective).mean:.4g}")
    own = {} if objective is Objective.MEAN_KL else {objective.with_unit: value}
    return {
        "Policy": name(candidate),
        "Effective bits": round(candidate.effective_bits, 3),
        "Nominal bits": round(candidate.nominal_bits, 3),
        **own,
        "KL (nats/token)": float(f"{score.kl.mean:.4g}"),
        "95% interval": f"{nats(score.kl.low)} to {nats(score.kl.high)}",
        "KL, calibration": float(f"{candidate.calibration.kl.mean:.4g}"),
        "Same top token (%)": round(100 * score.top1_agreement, 2),
        "NLL change (nats/token)": float(f"{score.nll_change:.3g}"),
        "Cache (GiB)": float(f"{size:.4g}"),
        "Of 16 bits (%)": round(100 * size / full, 1),
    }


def _full_gib(result: SearchResult, *, batch: int, context: int) -> float:
    layers = result.sweep.model.layers
    full = KVPolicy.uniform(FULL_PAIR, layers=len(layers), scheme=result.sweep.spec.scheme)
    return cache_bytes(full, layers, tokens=context, batch=batch) / GIB


def headline(candidate: Candidate, result: SearchResult, *, batch: int, context: int) -> None:
    """The numbers of one policy as metrics."""
    score = candidate.evaluation or candidate.calibration
    objective = result.spec.objective
    value = score.interval(objective)
    size = picking.candidate_gib(result, candidate, batch=batch, context=context)
    full = _full_gib(result, batch=batch, context=context)
    seen = "evaluation prompts" if candidate.evaluation else "calibration prompts"
    first, second = st.columns(2), st.columns(2)
    with first[0]:
        charts.fact(
            objective.label,
            nats(value.mean),
            f"{objective.unit}, 95%: {nats(value.low)} to {nats(value.high)}",
            help=f"What the search minimised, on {seen}: {objective.definition}. 0 is full precision.",
        )
    with first[1]:
        charts.fact(
            "Effective bits",
            f"{candidate.effective_bits:.2f}",
            f"nominal: {candidate.nominal_bits:.2f}",
            help="Bits per cached scalar, scales and offsets included; nominal bits leave them out.",
        )
    with second[0]:
        charts.fact(
            "Same top token",
            share(score.top1_agreement),
            f"NLL change: {score.nll_change:+.3g} nats",
            help="Tokens whose most likely next token is unchanged. NLL change: of the text, nats per token.",
        )
    with second[1]:
        charts.fact(
            "Cache",
            gib(size),
            f"{100 * size / full:.0f}% of {gib(full)} at 16 bits",
            help=f"Batch {batch}, {context:,} tokens of each, windows and sinks included.",
        )


def against_uniform(picked: Candidate, result: SearchResult, budget: picking.Budget) -> str:
    """The picked policy beside the best uniform one within the same budget, in one sentence."""
    uniform = [item for item in result.baselines if _fits(item, result, budget)]
    if not uniform:
        return "No uniform policy that was measured fits this budget."
    objective = result.spec.objective
    best = min(uniform, key=lambda item: headlines.loss(item, objective))
    lost, least = headlines.loss(picked, objective), headlines.loss(best, objective)
    label = f"{name(best)} ({best.effective_bits:.2f} bits)"
    has = f"{objective.label} {nats(best.value(objective).mean)}"
    if least <= lost:
        return f"Uniform does as well here: {label} has {has}."
    if not trust.differ(best, picked, objective):
        return f"Not distinguishable from the best uniform policy that fits: {label}, {has}."
    return (
        f"{objective.label} is {100 * (1 - lost / least):.0f}% below the best uniform policy that fits: {label}, "
        f"{nats(best.value(objective).mean)}."
    )


def _fits(candidate: Candidate, result: SearchResult, budget: picking.Budget) -> bool:
    if budget.max_bits is not None and candidate.effective_bits > budget.max_bits:
        return False
    size = picking.candidate_gib(result, candidate, batch=budget.batch, context=budget.context)
    return budget.max_gib is None or size <= budget.max_gib


def rows(candidates: Iterable[Candidate], result: SearchResult, *, batch: int, context: int) -> list[Mapping[str, Any]]:
    """The comparison table, a row a policy."""
    return [numbers(candidate, result, batch=batch, context=context) for candidate in candidates]


def downloads(result: SearchResult, candidate: Candidate) -> None:
    """Buttons that build the policy's files at the click."""
    key = identity(candidate)

    def as_json() -> str:
        return policies.policy_json(policies.document(result, candidate))

    def as_yaml() -> str:
        return policies.export_policy(candidate.policy, to="kvtuner-yaml")

    with st.container(horizontal=True):
        st.download_button(
            "policy.json",
            data=as_json,
            file_name="policy.json",
            mime="application/json",
            on_click="ignore",
            type="primary",
            icon=":material/download:",
            key=f"json-{key}",
        )
        st.download_button(
            "KVTuner YAML",
            data=as_yaml,
            file_name="policy.yaml",
            mime="application/yaml",
            on_click="ignore",
            icon=":material/download:",
            key=f"yaml-{key}",
            help="The format of the original KVTuner project.",
        )
