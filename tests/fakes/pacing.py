"""A runner for worker processes whose measurements take a known time, as passes on a GPU do."""

import os
import time
from dataclasses import replace
from pathlib import Path

from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.tasks import InspectTask, ModelReport, ScoreManyTask, ScoreTask
from tests.fakes.studies import SyntheticScorer, model_info

TOGETHER = 32
"""What `PacedRunner` finds worth asking for in one task."""


class PacedRunner:
    """Scores policies in passes: one with few takes as long as one with many.

    Args:
        folder: Where each process writes down the policies of each of its tasks, a line a task.
        seconds: Of a pass.
        in_pass: Policies of a pass.
        layers: Of the model.
    """

    def __init__(self, folder: str, *, seconds: float, in_pass: int = 8, layers: int = 16) -> None:
        self._book = Path(folder) / f"tasks {os.getpid()}"
        self._seconds = seconds
        self._in_pass = in_pass
        self._info = model_info(layers)
        self._scorer = SyntheticScorer(self._info)

    def run(self, task, *, emit=None, cancelled=None):  # noqa: ARG002 - measurements emit nothing
        if isinstance(task, InspectTask):
            return self.report()
        policies = task.policies if isinstance(task, ScoreManyTask) else (task.policy,)
        passes = -(-len(policies) // self._in_pass)
        time.sleep(passes * self._seconds)
        with self._book.open("a") as book:
            book.write(f"{len(policies)}\n")
        each = passes * self._seconds / len(policies)
        scores = tuple(replace(self._scorer.score(policy), seconds=each) for policy in policies)
        return scores[0] if isinstance(task, ScoreTask) else scores

    def report(self) -> ModelReport:
        """What each worker finds."""
        provenance = Provenance(created="", device="cpu", device_type="cpu", dtype="float32")
        return ModelReport(info=self._info, provenance=provenance, free_bytes=1, total_bytes=1, together=TOGETHER)

    def close(self) -> None:
        """Nothing is held."""
