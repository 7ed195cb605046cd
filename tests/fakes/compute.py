"""A `Compute` that counts, and can die in the middle, around one that works."""

from kvtuner_core.domain.tasks import ProfileTask, ScoreTask
from kvtuner_core.errors import CancelledError


class Killed(BaseException):
    """Stands for the death of the process: nothing may catch it."""


class CountingCompute:
    """Passes tasks on and keeps those that ran; dies before task number ``dies_at``."""

    def __init__(self, inner):
        self.inner = inner
        self.tasks = []
        self.dies_at = None

    def run(self, task, *, emit=None, cancelled=None):
        if self.dies_at is not None and len(self.tasks) >= self.dies_at:
            raise Killed
        self.tasks.append(task)
        return self.inner.run(task, emit=emit, cancelled=cancelled)

    def run_many(self, tasks, *, report, cancelled=None):  # noqa: ARG002 - the inner one has the model
        for index, task in enumerate(tasks):
            if cancelled is not None and cancelled():
                raise CancelledError("cancelled")
            yield index, self.run(task, cancelled=cancelled)

    def count(self, kind):
        return sum(isinstance(task, kind) for task in self.tasks)

    @property
    def profiles(self):
        """Pairs measured in all profile tasks."""
        return sum(len(task.pairs) for task in self.tasks if isinstance(task, ProfileTask))

    @property
    def scores(self):
        """Score tasks."""
        return self.count(ScoreTask)

    def describe(self, reference, *, version=""):
        return self.inner.describe(reference, version=version)

    def workers(self):
        return self.inner.workers()

    def close(self):
        """The inner one is shared between tests and stays."""
