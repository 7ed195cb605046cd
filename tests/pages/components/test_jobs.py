from dataclasses import replace

from kvtuner_core.domain.runs import JobView, Progress, RunKind, RunRecord, RunStatus
from pages.components import jobs

RECORD = RunRecord(
    id="a1", kind=RunKind.SEARCH, status=RunStatus.RUNNING, title="Search", spec="{}", created="2026-11-20T09:30:00Z"
)


def test_every_status_has_a_word():
    assert set(jobs.BADGES) == set(RunStatus)


def test_a_waiting_job_says_how_many_are_ahead():
    view = JobView(record=replace(RECORD, status=RunStatus.QUEUED), position=2, progress=None)
    assert jobs.progress_line(view) == "Waiting for the device, 2 jobs ahead"


def test_progress_says_what_is_done_how_fast_and_how_long_it_takes():
    view = JobView(
        record=RECORD,
        position=0,
        progress=Progress(stage="search", done=57, total=200, reused=12),
        rate=2.5,
        seconds_left=57.0,
    )
    line = jobs.progress_line(view).replace("\\", "")
    assert line == "search: 57 of 200 (12 from the store) · 2.5 a second · about 57 s left, then evaluation"


def test_the_time_left_of_a_stage_is_not_taken_for_that_of_the_whole():
    def line(kind, stage):
        progress = Progress(stage=stage, done=1, total=2)
        return jobs.progress_line(
            JobView(record=replace(RECORD, kind=kind), position=0, progress=progress, rate=1.0, seconds_left=9.0)
        )

    assert line(RunKind.SEARCH, "sweep").endswith("left, then search and evaluation")
    assert line(RunKind.SEARCH, "evaluation").endswith("left")
    assert line(RunKind.SWEEP, "sweep").endswith("left")


def test_a_first_step_says_what_it_waits_for():
    view = JobView(
        record=RECORD, position=0, progress=Progress(stage="model", done=0, total=1, message="Loading the model")
    )
    assert jobs.progress_line(view) == "Loading the model"


def test_only_a_stopped_study_is_resumable():
    stopped = replace(RECORD, status=RunStatus.CANCELLED)
    assert jobs.is_resumable(stopped)
    assert jobs.is_resumable(replace(stopped, kind=RunKind.SWEEP))
    assert not jobs.is_resumable(replace(stopped, kind=RunKind.GENERATION))
    assert not jobs.is_resumable(RECORD)
