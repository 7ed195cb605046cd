"""How each layer reacts to fewer bits: errors, end-to-end effect, pairs kept, groups."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.study import SweepResult, SweepSpec
from kvtuner_core.services import results, studies
from pages.components import address, charts, failures, frame, jobs, requests, scores, stored
from pages.components.wording import power_of_ten
from pages.components.workspace import workspace

METRICS = {
    "kl": "KL end to end",
    "output_error": "Output error",
    "score_error": "Score error",
    "key_error": "Key error",
    "value_error": "Value error",
}
PAGE = "sensitivity"
CLICKED = "heatmap"


@failures.action
def start(spec: SweepSpec) -> None:
    """Queue the sweep and follow it; the form makes room."""
    st.session_state["new"] = False
    st.query_params["run"] = studies.start_sweep(workspace(), spec)


@failures.action
def clicked() -> None:
    """Keep the layer of the clicked cell in the address; a redrawn chart forgets it."""
    layer = charts.selected(CLICKED)
    address.hold("layer", (layer,) if layer else address.held("layer", page=PAGE), page=PAGE)


def form() -> None:
    """The form of a new sweep."""
    with failures.in_one_line():
        spec = requests.sweep_spec()
        plan = studies.plan_sweep(workspace(), spec)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Start the sweep", type="primary", icon=":material/play_arrow:", on_click=start, args=(spec,))
            requests.show_cost(plan)


def space(result: SweepResult) -> None:
    """What pruning and grouping left, and whether local errors predict the effect."""
    found = result.space
    info = figures.correlation_info(result)
    for column, (label, value, note) in zip(
        st.columns(4),
        (
            (
                "Policies before",
                power_of_ten(found.log10_before),
                f"{len(found.candidates)} pairs in {len(found.kept)} layers",
            ),
            ("After pruning pairs", power_of_ten(found.log10_pruned), f"{sum(map(len, found.kept))} pairs kept"),
            ("After grouping layers", power_of_ten(found.log10_after), f"{len(found.groups)} groups"),
            ("Rank correlation of layers", info, "output error with KL, -1 to 1"),
        ),
        strict=True,
    ):
        with column:
            charts.fact(label, value, note)


def layer_detail(result: SweepResult) -> None:
    """One layer's errors under every pair."""
    layers = {str(index): f"Layer {index}" for index in range(len(result.space.kept))}
    layer = int(address.choose("Layer", layers, name="layer", page=PAGE))
    info = figures.layer_info(result, layer)
    charts.show(
        figures.layer_figure(info, dark=charts.is_dark()),
        info.rows(),
        key="layer",
        alt=f"Errors of layer {layer} under every pair",
    )


def show(result: SweepResult, *, shipped: bool) -> None:
    """Everything a sweep found."""
    stored.origin(result, shipped=shipped)
    space(result)
    metric = address.switch("Shown", METRICS, name="metric", page=PAGE)
    left, right = st.columns([3, 2], gap="large")
    with left:
        info = figures.heatmap_info(result, metric)
        charts.show(
            figures.heatmap_figure(info, dark=charts.is_dark(), height=470),
            info.rows(),
            key=CLICKED,
            alt=f"{METRICS[metric]} of every layer and pair",
            on_click=clicked,
        )
    with right:
        layer_detail(result)
    left, right = st.columns([3, 2], gap="large")
    with left:
        lines = figures.lines_info(result, metric)
        charts.show(
            figures.lines_figure(lines, dark=charts.is_dark()),
            lines.rows(),
            key="lines",
            alt=f"{METRICS[metric]} over the layers, a line a pair",
        )
    with right:
        effect = figures.effect_info(result)
        charts.show(
            figures.effect_figure(effect, dark=charts.is_dark()),
            effect.rows(),
            key="effect",
            alt="KL against output error, a point a layer",
        )
    scores.show(result)


def main() -> None:
    """Draw the page."""
    record = stored.headed("Sensitivity", PAGE, *stored.STUDIES)
    box = st.expander(
        "New sweep", icon=":material/add_circle:", expanded=record is None, key="new", bind="query-params"
    )
    if box.open:
        with box:
            form()
    if record is None:
        st.info("No sweep yet: choose above and start. The bundled model takes about a minute on a CPU.")
        return
    jobs.follow(record.id)
    result = stored.sweep_of(record)
    if result is not None:
        show(result, shipped=record.id == results.DEMO_RUN)
    elif not record.status.is_live:
        jobs.show_stopped(record)


frame.draw(main)
