"""Stored runs and the queue: open, resume, export, delete."""

import streamlit as st

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.services import results
from pages.components import address, charts, failures, frame, jobs, kinds, stored
from pages.components.wording import count, moment, plain
from pages.components.workspace import workspace

SHOWN = 30
KINDS = {
    "all": "All",
    RunKind.SEARCH.value: "Searches",
    RunKind.SWEEP.value: "Sweeps",
    RunKind.EVALUATION.value: "Kinds of text",
    RunKind.GENERATION.value: "Generations",
}


@failures.action
def delete(run: str) -> None:
    """Forget a run; what was measured stays."""
    results.delete_run(workspace(), run)
    st.toast("The run is deleted; what it measured is kept and used again.")


def export(record: RunRecord) -> str:
    """What a run found as CSV."""
    if record.kind is RunKind.SEARCH:
        found = stored.search_of(record)
        if found is not None:
            return results.candidates_csv(found)
    swept = stored.sweep_of(record)
    return results.sweep_csv(swept) if swept is not None else ""


def queue() -> None:
    """The jobs of all sessions, the one at work first."""
    live = jobs.live_views()
    if live:
        st.subheader("Queue", anchor=False)
        for view in live:
            jobs.follow(view.record.id)


def open_link(record: RunRecord) -> None:
    """A link to the page that shows this run best."""
    name = "run"
    if record.kind is RunKind.GENERATION:
        page, name = "pages/compare.py", "job"
    elif record.kind is RunKind.SWEEP:
        page = "pages/sensitivity.py"
    elif record.kind is RunKind.EVALUATION:
        if record.status is RunStatus.DONE:
            kinds.popover(record)
        return
    else:
        page = "pages/tradeoffs.py" if record.status is RunStatus.DONE else "pages/search.py"
    st.page_link(page, label="Open", icon=":material/open_in_new:", query_params={name: record.id})


def buttons(record: RunRecord) -> None:
    """What can be done with a run."""
    open_link(record)
    if jobs.is_resumable(record):
        st.button(
            "Resume", key=f"resume-{record.id}", icon=":material/restart_alt:", on_click=jobs.resume, args=(record.id,)
        )
    if record.status is RunStatus.DONE and record.kind in stored.STUDIES:
        st.download_button(
            "CSV",
            data=lambda: export(record),
            file_name=f"kvtuner-{record.id}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key=f"csv-{record.id}",
        )
    if record.id != results.DEMO_RUN and not record.status.is_live:
        with st.popover("Delete", icon=":material/delete:"):
            st.markdown("Delete this run? What it measured stays and is used again.")
            st.button("Delete the run", key=f"delete-{record.id}", type="primary", on_click=delete, args=(record.id,))


def one(record: RunRecord) -> None:
    """A run as a line with its buttons."""
    with st.container(border=True):
        words, actions = st.columns([3, 2], vertical_alignment="center")
        with words:
            with st.container(horizontal=True, vertical_alignment="center"):
                jobs.status_badge(record.status)
                if record.id == results.DEMO_RUN:
                    st.badge("shipped", icon=":material/inventory_2:", color="violet")
                st.markdown(f"**{plain(record.title)}**", width="stretch")
            progress = f" · {record.stage} {record.done} of {record.total}" if record.total else ""
            st.caption(plain(f"{record.kind} {record.id} · {moment(record.created)}{progress}"))
            if record.error:
                st.markdown(f":red[{plain(record.error)}]")
        with actions, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
            buttons(record)


def main() -> None:
    """Draw the page."""
    st.title("Runs", anchor=False)
    queue()
    records = results.list_runs(workspace())
    if not records:
        stored.empty("No runs yet", "A run is a sweep, search, evaluation or generation, kept with what it found.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = address.switch("Kind", KINDS, name="kind", page="runs")
        st.download_button(
            "All runs as CSV",
            data=lambda: results.runs_csv(workspace()),
            file_name="kvtuner-runs.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
        )
    shown = [record for record in records if kind in ("all", record.kind)]
    if not shown:
        st.info("There are no runs of this kind. Choose another kind, or start one.")
    for record in shown[:SHOWN]:
        one(record)
    with st.expander(f"Table of {count(len(shown), 'run')}", icon=":material/table:"):
        charts.table(
            [
                {"Run": r.id, "Kind": str(r.kind), "Status": str(r.status), "Title": r.title, "Created": r.created,
                 "Finished": r.finished, "Done": r.done, "Total": r.total, "Error": r.error}
                for r in shown
            ],
            key="runs-table",
        )  # fmt: skip


frame.draw(main)
