"""Start a search, see what it will cost, and watch its front grow."""

from collections.abc import Sequence

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.runs import JobView, RunKind, RunRecord
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpec
from kvtuner_core.services import results, studies, trust
from pages.components import charts, failures, frame, jobs, requests, stored
from pages.components.wording import duration
from pages.components.workspace import workspace


@failures.action
def start(spec: SearchSpec) -> None:
    """Queue the search and follow it; the form makes room."""
    st.session_state["new"] = False
    st.query_params["run"] = studies.start_search(workspace(), spec)


def form() -> None:
    """The form, what it will cost, and the button."""
    st.caption(
        "A search measures each layer under each pair (sensitivity), prunes and groups, then scores whole policies on "
        "the live model and checks the front on prompts it did not see."
    )
    with failures.in_one_line():
        spec = requests.search_spec()
        plan = studies.plan_search(workspace(), spec)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Start the search", type="primary", icon=":material/play_arrow:", on_click=start, args=(spec,))
            requests.show_cost(plan)


def growing_front(view: JobView) -> None:
    """The front of what a live search has scored so far."""
    scored = [event for event in view.events if isinstance(event, Candidate)]
    if not scored:
        st.caption("The front appears here with the first scored policies.")
        return
    progress(scored, results.objective_of(view.record), key=f"growing-{view.record.id}")


def progress(scored: Sequence[Candidate], objective: Objective, *, key: str) -> None:
    """The front that some scored policies make, and how its hypervolume grew."""
    info = figures.progress_info(scored, objective)
    left, right = st.columns([5, 3], gap="medium")
    with left:
        charts.show(
            figures.progress_figure(info, dark=charts.is_dark()),
            info.rows(),
            key=key,
            alt="The Pareto front of the policies scored so far",
        )
    with right:
        charts.show(
            figures.hypervolume_figure(info, dark=charts.is_dark()),
            info.volume_rows(),
            key=f"{key}-volume",
            alt="Hypervolume over the evaluations",
        )


def finished(result: SearchResult) -> None:
    """What a finished search did, and where to go on."""
    parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in result.seconds)
    facts = (
        (
            "Policies scored",
            f"{result.evaluations:,}",
            f"by {result.spec.strategy}, {len(result.baselines)} baselines beside them",
        ),
        ("On the front", str(len(result.front)), "scored again on evaluation prompts"),
        (
            "Hypervolume, share",
            f"{result.hypervolume:.4f}",
            "of bits and the log of what is minimised; higher is better",
        ),
        ("Wall time", duration(sum(seconds for _, seconds in result.seconds)), parts),
    )
    for column, fact in zip(st.columns(4), facts, strict=True):
        with column:
            charts.fact(*fact)
    if stopped := trust.stops(result):
        st.caption(stopped)
    stored.origin(result)
    st.page_link(
        "pages/tradeoffs.py",
        label="Pick a policy from this front",
        icon=":material/arrow_forward:",
        query_params={"run": result.run},
    )
    progress(result.candidates, result.spec.objective, key="progress")


def show(record: RunRecord) -> None:
    """A search: live, stopped or finished."""
    if jobs.follow(record.id, draw=growing_front):
        return
    result = stored.search_of(record)
    if result is not None:
        finished(result)
    else:
        jobs.show_stopped(record)


def main() -> None:
    """Draw the page."""
    record = stored.headed("Search", "search", RunKind.SEARCH)
    box = st.expander(
        "New search", icon=":material/add_circle:", expanded=record is None, key="new", bind="query-params"
    )
    if box.open:
        with box:
            form()
    if record is None:
        st.info("No search yet: choose above and start. The bundled model takes a few minutes on a CPU.")
    else:
        show(record)


frame.draw(main)
