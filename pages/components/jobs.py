"""Live jobs on a page: progress, time left, cancel and resume, the same in every session."""

from collections.abc import Callable

import streamlit as st

from kvtuner_core.domain.runs import JobView, Progress, RunKind, RunRecord, RunStatus
from kvtuner_core.services import results, studies
from kvtuner_core.services.layer_scoring import SCORES_STAGE
from kvtuner_core.services.searching import EVALUATION_STAGE, SEARCH_STAGE
from kvtuner_core.services.sweeping import SWEEP_STAGE
from pages.components import failures
from pages.components.wording import count, duration, plain
from pages.components.workspace import workspace

POLL_SECONDS = 1.0
DRAW_SECONDS = 3.0

BADGES = {
    RunStatus.QUEUED: ("waiting", "gray", "hourglass_empty"),
    RunStatus.RUNNING: ("running", "blue", "play_circle"),
    RunStatus.DONE: ("done", "green", "check_circle"),
    RunStatus.FAILED: ("failed", "red", "error"),
    RunStatus.CANCELLED: ("cancelled", "orange", "cancel"),
    RunStatus.INTERRUPTED: ("interrupted", "orange", "pause_circle"),
}
"""Word, colour and icon of each status; the word alone says it all."""

RESUMABLE = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.INTERRUPTED)

Draw = Callable[[JobView], None]


def live_views() -> tuple[JobView, ...]:
    """The jobs that wait or run, of all sessions."""
    return tuple(view for view in workspace().queue.views() if view.record.status.is_live)


def follow(run: str, *, draw: Draw | None = None) -> bool:
    """Show a job and keep it up to date while it lives; its end draws the whole page again.

    The panel with its button is drawn apart from what belongs to the job: a click is then answered
    without a chart being drawn first.

    Args:
        run: Id of the run.
        draw: Draws what belongs to the job below its progress, such as the front so far.

    Returns:
        Whether the job was alive at this moment.
    """
    if _live_view(run) is None:
        return False
    st.fragment(_follow, run_every=POLL_SECONDS)(run)
    if draw is not None:
        st.fragment(_illustrate, run_every=DRAW_SECONDS)(run, draw)
    return True


def _live_view(run: str) -> JobView | None:
    view = workspace().queue.view(run)
    return view if view is not None and view.record.status.is_live else None


def _follow(run: str) -> None:
    with failures.in_one_line():
        view = _live_view(run)
        if view is None:
            st.rerun()
        show_progress(view)


def _illustrate(run: str, draw: Draw) -> None:
    with failures.in_one_line():
        view = workspace().queue.view(run)
        if view is not None:
            draw(view)


def show_progress(view: JobView) -> None:
    """A live job: title, status, progress bar with rate and time left, and a button to cancel."""
    with st.container(border=True):
        _head(view.record, stopping=view.stopping)
        done, total = (view.progress.done, view.progress.total) if view.progress else (0, 0)
        st.progress(min(1.0, done / total) if total else 0.0, text=progress_line(view))


def show_stopped(record: RunRecord) -> None:
    """A run that ended before it was finished: why, and a button to resume it."""
    with st.container(border=True):
        _head(record)
        if record.done:
            st.caption(plain(f"Stopped in {record.stage} at {record.done:,} of {record.total:,}; all of it is stored."))
        if record.error:
            failures.show(record.error)


def _head(record: RunRecord, *, stopping: bool = False) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        status_badge(record.status)
        st.markdown(f"**{plain(record.title)}**", width="stretch")
        _buttons(record, stopping=stopping)


def status_badge(status: RunStatus) -> None:
    """The status as word, icon and colour."""
    word, colour, icon = BADGES[status]
    st.badge(word, color=colour, icon=f":material/{icon}:")  # type: ignore[arg-type]


def progress_line(view: JobView) -> str:
    """What the job is doing, how far it is, how fast, and how long it still takes."""
    if view.record.status is RunStatus.QUEUED:
        return f"Waiting for the device, {count(view.position, 'job')} ahead"
    if view.progress is None:
        return "Starting: the worker loads the model"
    parts = [_stage(view.progress)]
    if view.rate:
        parts.append(f"{view.rate:.1f} a second" if view.rate >= 1 else f"{60 * view.rate:.0f} a minute")
    if view.seconds_left is not None:
        parts.append(f"{duration(view.seconds_left)} left{_then(view)}")
    return plain(" · ".join(parts))


def _then(view: JobView) -> str:
    """What a search still has before it after this stage, for the time left is the stage's."""
    if view.record.kind is not RunKind.SEARCH or view.progress is None:
        return ""
    return {
        SWEEP_STAGE: f", then {SEARCH_STAGE} and {EVALUATION_STAGE}",
        SCORES_STAGE: f", then {SEARCH_STAGE} and {EVALUATION_STAGE}",
        SEARCH_STAGE: f", then {EVALUATION_STAGE}",
    }.get(view.progress.stage, "")


def _stage(progress: Progress) -> str:
    if progress.message and not (progress.total and progress.done):
        return progress.message
    if not progress.total:
        return progress.stage
    reused = f" ({progress.reused:,} from the store)" if progress.reused else ""
    return f"{progress.stage}: {progress.done:,} of {progress.total:,}{reused}"


def is_resumable(record: RunRecord) -> bool:
    """Whether a run stopped before its end and can go on; a generation is started anew."""
    return record.status in RESUMABLE and record.kind in (RunKind.SWEEP, RunKind.SEARCH, RunKind.EVALUATION)


def _buttons(record: RunRecord, *, stopping: bool) -> None:
    if record.status.is_live:
        st.button(
            "Stopping" if stopping else "Cancel",
            key=f"cancel-{record.id}",
            icon=":material/stop_circle:",
            disabled=stopping,
            help="What is measured stays; the run can be resumed.",
            on_click=cancel,
            args=(record.id,),
        )
    elif is_resumable(record):
        st.button(
            "Resume",
            key=f"resume-{record.id}",
            icon=":material/restart_alt:",
            help="Goes on where it stopped; nothing stored is measured again.",
            on_click=resume,
            args=(record.id,),
        )


@failures.action
def cancel(run: str) -> None:
    """Ask a job to stop; asking twice is harmless."""
    studies.cancel(workspace(), run)


@failures.action
def resume(run: str) -> None:
    """Start a stopped run again and follow it; a page shows an evaluation beside the search it belongs to."""
    resumed = studies.resume(workspace(), run)
    if results.find_run(workspace(), resumed).kind is not RunKind.EVALUATION:
        st.query_params["run"] = resumed
