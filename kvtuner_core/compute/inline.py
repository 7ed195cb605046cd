"""Model work in this process, for the command line, notebooks and tests."""

import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_core.compute.agreement import check_agreement
from kvtuner_core.compute.threads import let_idle_threads_sleep
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.ports import Emit
from kvtuner_core.domain.tasks import Answer, InspectTask, MeasureTask, ModelReport, Task, WorkerInfo

if TYPE_CHECKING:
    from kvtuner_core.runtime.worker import Runtime


class InlineCompute:
    """Holds one `Runtime`, made at the first task; tasks of several threads run one after the other."""

    def __init__(self, *, cache_dir: Path, roots: tuple[Path, ...] | None = None) -> None:
        """Nothing is loaded yet.

        Args:
            cache_dir: Folder for converted models.
            roots: Folders that local models may lie in, or ``None`` for any.
        """
        self._cache_dir = cache_dir
        self._roots = roots
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None

    def run(self, task: Task, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None) -> Answer:
        """Run one task to its end, as `Compute.run`.

        Raises:
            KVTunerError: What the task raised.
        """
        with self._lock:
            if self._runtime is None:
                # torch and transformers take seconds to import, so only a first task pays for them.
                let_idle_threads_sleep()
                from kvtuner_core.runtime.worker import Runtime

                self._runtime = Runtime(cache_dir=self._cache_dir, roots=self._roots)
            return self._runtime.run(task, emit=emit, cancelled=cancelled)

    def run_many(
        self,
        tasks: Sequence[MeasureTask],
        *,
        report: ModelReport,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generator[tuple[int, Answer], None, None]:
        """Run tasks in their order, each when its answer is asked for, as `Compute.run_many`.

        Raises:
            ComputeError: If the model here is not the one of ``report``.
            KVTunerError: What a task raised.
        """
        for index, task in enumerate(tasks):
            if index == 0:
                found = self.run(InspectTask(model=task.evaluation.model), cancelled=cancelled)
                if isinstance(found, ModelReport):
                    check_agreement(found, report, worker="this process")
            yield index, self.run(task, cancelled=cancelled)

    def describe(self, reference: str, *, version: str = "") -> ModelInfo:  # noqa: ARG002 - read anew each time
        """Geometry of a model from its configuration, as `Compute.describe`; read in this process."""
        from kvtuner_core.runtime.loading import describe

        return describe(reference, cache_dir=self._cache_dir, roots=self._roots)

    def workers(self) -> tuple[WorkerInfo, ...]:
        """This process."""
        return (WorkerInfo(name="inline", device="this process", pid=os.getpid()),)

    def close(self) -> None:
        """Release the loaded models; a second call does nothing."""
        with self._lock:
            if self._runtime is not None:
                self._runtime.close()
                self._runtime = None
