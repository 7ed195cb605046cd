"""Generations side by side while they stream: text, marked differences, measured bytes and speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from kvtuner_core.domain.runs import JobView, RunKind, RunRecord, RunStatus
from kvtuner_core.domain.tasks import Generation, TokenEvent
from kvtuner_core.errors import InputError
from kvtuner_core.services import generating, results, studies
from pages.components import charts, differences, failures, jobs
from pages.components.wording import plain, size
from pages.components.workspace import workspace

EVERY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What is known of one generation at this moment."""

    record: RunRecord
    view: JobView | None
    result: Generation | None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts of the tokens so far."""
        if self.result is not None:
            return self.result.token_texts
        events = self.view.events if self.view is not None else ()
        return tuple(event.text for event in events if isinstance(event, TokenEvent))

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.record.status.is_live

    @property
    def title(self) -> str:
        """How the cache was stored."""
        name = self.record.title.rsplit(", ", 1)[-1]
        return name[:1].upper() + name[1:]


def show(runs: Sequence[str]) -> None:
    """Show some generations, the first being the reference; keeps up to date while one of them lives.

    Raises:
        InputError: If one of them is no stored generation.
    """
    alive = any(column.is_live for column in _columns(runs))
    st.fragment(_draw, run_every=EVERY if alive else None)(tuple(runs), alive)


def _columns(runs: Sequence[str]) -> list[Column]:
    found = []
    for run in runs:
        view = workspace().queue.view(run)
        record = view.record if view is not None else results.find_run(workspace(), run)
        if record.kind is not RunKind.GENERATION:
            raise InputError(f"A comparison shows generations; run {run!r} is a {record.kind}. Generate again.")
        result = generating.load_generation(workspace(), run) if record.status is RunStatus.DONE else None
        found.append(Column(record=record, view=view, result=result))
    return found


def _draw(runs: tuple[str, ...], was_alive: bool) -> None:
    with failures.in_one_line():
        columns = _columns(runs)
        alive = [column.record.id for column in columns if column.is_live]
        if was_alive and not alive:
            st.rerun()
        if alive:
            st.button("Cancel", icon=":material/stop_circle:", key="cancel-all", on_click=_cancel, args=(alive,))
        for place, column in zip(st.columns(len(columns), border=True), columns, strict=True):
            with place:
                _column(column, columns[0], alone=len(columns) == 1)


@failures.action
def _cancel(runs: list[str]) -> None:
    for run in runs:
        studies.cancel(workspace(), run)


def _column(column: Column, reference: Column, *, alone: bool) -> None:
    record = column.record
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(column.title)}**", width="stretch")
        jobs.status_badge(record.status)
    if record.error:
        failures.show(record.error)
    if column.is_live and column.view is not None and not column.tokens:
        st.caption(jobs.progress_line(column.view))
    if not column.tokens:
        return
    marked: tuple[bool, ...] = ()
    if column is reference:
        if not alone:
            st.caption("The others are held against this text")
    elif reference.tokens:
        finished = not (column.is_live or reference.is_live)
        difference = differences.compare(column.tokens, reference.tokens, finished=finished)
        st.caption(difference.words)
        marked = difference.marked
    st.html(differences.as_html(column.tokens, marked))
    if column.result is not None:
        _measured(column.result)


def _measured(result: Generation) -> None:
    left, right = st.columns(2)
    share = result.cache_bytes / result.full_precision_bytes if result.full_precision_bytes else 1.0
    with left:
        note = f"{100 * share:.0f}% of {size(result.full_precision_bytes)} in full precision"
        charts.fact("Cache, measured", size(result.cache_bytes), note)
    with right:
        note = f"{result.prompt_tokens} prompt tokens in {result.prefill_seconds:.2f} s"
        where = f"{result.device}; {result.decoding}" if result.decoding else result.device
        charts.fact("Tokens per second", f"{result.tokens_per_second:.1f}", plain(note), help=where)
