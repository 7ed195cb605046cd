"""Stored runs: choosing one, loading what it found, and what to do when there is none."""

import streamlit as st

from kvtuner_core.domain.runs import RunKind, RunRecord, RunStatus
from kvtuner_core.domain.study import SearchResult, SweepResult
from kvtuner_core.services import results
from pages.components import address
from pages.components.wording import moment, plain
from pages.components.workspace import workspace

STUDIES = (RunKind.SWEEP, RunKind.SEARCH)
_LAST = "last-run"


def headed(title: str, page: str, *kinds: RunKind) -> RunRecord | None:
    """The page's title with the choice of its run beside it."""
    words, choice = st.columns([1, 2], vertical_alignment="center")
    words.title(title, anchor=False)
    with choice:
        return choose_run(page, *kinds, labelled=False)


def choose_run(page: str, *kinds: RunKind, finished: bool = False, labelled: bool = True) -> RunRecord | None:
    """Offer the stored runs of some kinds; the choice is in the address and kept between pages.

    Args:
        page: Page that asks.
        kinds: Kinds of run that the page can show.
        finished: Whether only finished runs are offered.
        labelled: Whether the label is seen.

    Returns:
        The chosen run, or ``None`` if there is none to choose.
    """
    records = {
        record.id: record
        for record in results.list_runs(workspace())
        if record.kind in kinds and (record.status is RunStatus.DONE or not finished)
    }
    if not records:
        return None
    options = {run: label(record) for run, record in records.items()}
    finished_first = next((run for run, record in records.items() if record.status is RunStatus.DONE), "")
    default = str(st.session_state.get(_LAST, ""))
    default = default if default in records else finished_first
    chosen = address.choose("Run", options, name="run", page=page, default=default, visible=labelled)
    st.session_state[_LAST] = chosen
    return records[chosen]


def label(record: RunRecord) -> str:
    """One line for a list of runs."""
    if record.id == results.DEMO_RUN:
        return f"{record.title} (shipped)"
    state = "" if record.status is RunStatus.DONE else f", {record.status}"
    return f"{record.title}{state}, {moment(record.created)} [{record.id}]"


@st.cache_resource(max_entries=8, show_spinner="Reading the study")
def _search(run: str, stamp: str) -> SearchResult | None:
    del stamp
    return results.load_search(workspace(), run)


@st.cache_resource(max_entries=8, show_spinner="Reading the sweep")
def _sweep(run: str, stamp: str) -> SweepResult | None:
    del stamp
    return results.load_sweep(workspace(), run)


def search_of(record: RunRecord) -> SearchResult | None:
    """The finished search of a run, or ``None``."""
    return _search(record.id, _stamp(record))


def sweep_of(record: RunRecord) -> SweepResult | None:
    """The sweep of a run, also of a search under way once its sweep is finished, or ``None``."""
    return _sweep(record.id, _stamp(record))


def _stamp(record: RunRecord) -> str:
    return f"{record.created} {record.finished} {record.status} {record.stage}"


def empty(title: str, text: str, *, page: str = "pages/search.py", link: str = "Start a search") -> None:
    """Say that there is nothing yet, and what to do next."""
    with st.container(border=True):
        st.subheader(title, anchor=False)
        st.markdown(text)
        st.page_link(page, label=link, icon=":material/arrow_forward:")


def origin(result: SearchResult | SweepResult, *, shipped: bool = False) -> None:
    """Where a study's numbers come from: device, number format, date, versions, and whether it was shipped."""
    source = result.provenance
    versions = ", ".join(f"{name} {version}" for name, version in source.versions)
    with st.container(horizontal=True, vertical_alignment="center"):
        if shipped or (isinstance(result, SearchResult) and result.shipped):
            st.badge("shipped with the project", icon=":material/inventory_2:", color="violet")
        st.caption(plain(f"{source.device} · {source.dtype} · {moment(source.created)} · {versions}"))
