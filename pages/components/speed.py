"""Speeds that were measured on a GPU, in plain words, with what they say of the policies on the page."""

from collections.abc import Mapping
from datetime import date

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.speed import MeasuredSpeed, SpeedOrigin, SpeedTable
from kvtuner_core.services import measured
from pages.components import address, charts
from pages.components.wording import plain

PARTS = {"step": "A whole decode step", "attention": "Attention alone"}
MODEL = "the geometry of Llama-3.1-8B with random weights"
SCHEMES = {
    "per-token": "per token, one scale a token and head",
    "per-channel keys": "keys per channel, values per token",
    "kivi": "KIVI: keys per channel, values in groups of 32",
}


def show(policies: Mapping[str, KVPolicy], *, page: str) -> None:
    """Draw the tables that ship, or nothing where there are none.

    Args:
        policies: The policies chosen on the page, by what it calls them.
        page: Page that asks.
    """
    found = measured.measured_speed()
    if found is None:
        return
    st.subheader(f"Measured on an {found.step.origin.device}", anchor=False)
    with st.container(horizontal=True):
        part = address.switch("Speed of", PARTS, name="speed", page=page, visible=False)
        table = found.step if part == "step" else found.attention
        schemes = {name: SCHEMES.get(name, name) for name in _schemes(table, policies)}
        scheme = address.switch("Scheme", schemes, name=part, page=page, visible=False)
    st.markdown(_words(table.origin, part))
    info = figures.speed_info(table, scheme, what="a decode step" if part == "step" else "attention of a layer")
    times, shares = st.columns(2, gap="medium")
    with times:
        charts.show(
            figures.speed_figure(info, dark=charts.is_dark()),
            info.rows(),
            key=f"speed-{part}-{scheme}",
            alt="Times faster than bf16 of each pair at each batch and length",
        )
    with shares:
        charts.show(
            figures.speed_share_figure(info, dark=charts.is_dark()),
            info.rows(),
            key=f"speed-share-{part}-{scheme}",
            alt="Share of what the bytes allow of each pair at each batch and length",
        )
    if policies:
        _nearest(table, policies, scheme)
    if part == "step":
        _more(found)


def day(stamp: str) -> str:
    """An ISO 8601 day in words, such as ``24 November 2026``; other text unchanged."""
    try:
        found = date.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{found.day} {found:%B %Y}"


def _schemes(table: SpeedTable, policies: Mapping[str, KVPolicy]) -> tuple[str, ...]:
    """The table's schemes, that of the first policy first."""
    first = next((measured.scheme_of(table, policy) for policy in policies.values()), table.schemes[0])
    return (first, *(name for name in table.schemes if name != first))


def _words(origin: SpeedOrigin, part: str) -> str:
    what = (
        f"One token of every sequence through a whole model ({MODEL}), both sides captured as CUDA graphs."
        if part == "step"
        else f"The attention of one layer ({MODEL}) over its cache, for one token of every sequence."
    )
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions)
    return (
        f"{what} Measured on one {plain(origin.device)} on {day(origin.date)}, not on this machine, against the "
        f"fastest bfloat16 attention of the same run; memory copies at {origin.copy_gb_per_s:,.0f} GB/s. "
        f"Software: {plain(versions)}; `{origin.command}` prints it again."
    )


def _nearest(table: SpeedTable, policies: Mapping[str, KVPolicy], scheme: str) -> None:
    rows = []
    for name, policy in policies.items():
        for near in measured.neighbours(table, policy, scheme):
            speeds = {row.shape: f"{row.speedup:.2f} x" for row in near.rows}
            shapes = {row.shape: speeds.get(row.shape, "1 x") for row in table.of_scheme(scheme)}
            rows.append(
                {
                    "Policy": name if name == policy.name else f"{name}, {policy.name}",
                    "Measured": f"{'bf16' if not near.rows else near.pair} ({near.relation})",
                    **shapes,
                }
            )
    st.markdown(
        "**What was measured next to the chosen policies**, times faster than bf16. A policy that mixes pairs was not "
        "measured itself: these are the uniform policies with the next more and the next fewer nominal bits."
    )
    charts.table(rows, key="speed-nearest")


def _more(found: MeasuredSpeed) -> None:
    # side by side where there is room, else one below the other
    both = st.container(horizontal=True, gap="medium")
    with both.container(width=350):
        st.markdown(f"**Largest batch** that fitted beside the weights, {_where(found.largest_origin)}")
        largest = [
            {
                "Cache": row.pair,
                "Tokens each": f"{row.length // 1024}k",
                "Batch": row.batch,
                "Tokens per second": round(row.tokens_per_second),
            }
            for row in found.largest
        ]
        charts.table(largest, key="speed-largest")
    with both.container(width=735):
        st.markdown(f"**Cache by cache**, one sequence, {_where(found.caches_origin)}")
        caches = [
            {
                "Cache": row.cache,
                "Tokens": f"{row.length // 1024}k",
                "ms per token": round(row.ms, 1),
                "New lengths": round(row.first_ms, 1),
                "Requantising": f"{row.requantise_ms:.2f}" if row.requantise_ms else "",
                "Ours from Python": _times(row.eager_faster),
                "Ours as a graph": _times(row.graph_faster),
            }
            for row in found.caches
        ]
        charts.table(caches, key="speed-caches")
        st.caption(
            "Milliseconds a token at lengths of history that the process has met before, and at lengths new to it. "
            "Quantising the whole history again comes on top, shared out to all tokens. Ours is set against the first."
        )
        for origin in filter(lambda one: one.note, (found.largest_origin, found.caches_origin)):
            st.caption(origin.note)


def _times(faster: float | None) -> str:
    """How many times faster; nothing for a cache that is not set against ours."""
    return "" if faster is None else f"{faster:.2f} x faster" if faster >= 1 else f"{1 / faster:.2f} x slower"


def _where(origin: SpeedOrigin) -> str:
    return f"{plain(origin.device)}, {day(origin.date)}"
