"""What a worker process runs: tasks in, answers out."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.ports import Emit
from kvtuner_core.domain.tasks import (
    Answer,
    AskTask,
    CountTask,
    ErrorScoresTask,
    EvaluationSpec,
    GenerateTask,
    InspectTask,
    ModelReport,
    ProfileTask,
    ScoreManyTask,
    ScoreTask,
    Task,
    WeightScoresTask,
)
from kvtuner_core.errors import CancelledError, ComputeError, InputError
from kvtuner_core.runtime.asking import ask, count_tokens
from kvtuner_core.runtime.generation import generate
from kvtuner_core.runtime.gradients import error_scores
from kvtuner_core.runtime.loading import LoadedModel, load, quiet
from kvtuner_core.runtime.profiling import LayerProfiler
from kvtuner_core.runtime.provenance import device_memory, is_out_of_memory, provenance
from kvtuner_core.runtime.session import Session
from kvtuner_core.runtime.weight_scores import weight_scores

_SESSIONS = 2
_TOGETHER = 32


class Runtime:
    """Holds one model and the sessions used last, so that neither is prepared twice.

    Tasks of several threads run one after the other: a pass puts functions of its own into the
    model.

    Args:
        cache_dir: Where conversions of GGUF files are kept.
        roots: Folders that local models must lie in, or ``None`` for no restriction.
    """

    def __init__(self, *, cache_dir: Path, roots: tuple[Path, ...] | None = None) -> None:
        self._cache_dir = cache_dir
        self._roots = roots
        self._spec: ModelSpec | None = None
        self._loaded: LoadedModel | None = None
        self._lock = threading.RLock()
        self._sessions: OrderedDict[EvaluationSpec, Session] = OrderedDict()
        self._profiler: LayerProfiler | None = None

    def run(self, task: Task, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None) -> Answer:
        """Run one task to its end; see `kvtuner_core.domain.ports.Compute.run`.

        Raises:
            InputError: If the task's model, prompts, scheme or policy break a rule.
            ComputeError: If the device ran out of memory.
            CancelledError: If ``cancelled`` was true before the work began.
        """
        if cancelled is not None and cancelled():
            raise CancelledError("The task was cancelled before it began.")
        with self._lock, quiet(), self._out_of_memory():
            return self._dispatch(task, emit, cancelled)

    def close(self) -> None:
        """Let the model and the sessions go."""
        with self._lock:
            self._sessions.clear()
            self._profiler = None
            self._loaded = None
            self._spec = None
        _give_memory_back()

    def _dispatch(self, task: Task, emit: Emit | None, cancelled: Callable[[], bool] | None) -> Answer:
        match task:
            case InspectTask():
                return self._inspect(task.model)
            case ProfileTask():
                return self._layer(self._session(task.evaluation), task.layer).profile(task.pairs)
            case ErrorScoresTask() | WeightScoresTask():
                return self._layer_scores(task)
            case ScoreTask() | ScoreManyTask():
                return self._score(task)
            case GenerateTask():
                return generate(self._model(task.model), task, emit=emit, cancelled=cancelled)
            case AskTask() | CountTask():
                return self._question(task, cancelled)

    def _score(self, task: ScoreTask | ScoreManyTask) -> Answer:
        policies = (task.policy,) if isinstance(task, ScoreTask) else task.policies
        if any(policy.scheme != task.evaluation.scheme for policy in policies):
            raise InputError("A policy is scored under its own scheme; the evaluation names another.")
        session = self._session(task.evaluation)
        if isinstance(task, ScoreTask):
            return session.score(task.policy, seed=task.evaluation.seed)
        if task.stopping is not None:
            return session.score_until(task.policies, task.stopping, seed=task.evaluation.seed)
        return session.score_many(task.policies, seed=task.evaluation.seed)

    def _question(self, task: AskTask | CountTask, cancelled: Callable[[], bool] | None) -> Answer:
        loaded = self._model(task.model)
        if isinstance(task, CountTask):
            return count_tokens(loaded, task.texts)
        return ask(loaded, task, cancelled=cancelled)

    def _layer_scores(self, task: ErrorScoresTask | WeightScoresTask) -> Answer:
        session = self._session(task.evaluation)
        if isinstance(task, WeightScoresTask):
            return weight_scores(session.loaded, session.prompts)
        return error_scores(session, task.pairs, seed=task.evaluation.seed)

    def _inspect(self, spec: ModelSpec) -> ModelReport:
        loaded = self._model(spec)
        free, total = device_memory(loaded.device)
        return ModelReport(
            info=loaded.info,
            provenance=provenance(loaded.device, loaded.dtype),
            free_bytes=free,
            total_bytes=total,
            together=_TOGETHER if loaded.device.type == "cuda" else 1,
        )

    def _model(self, spec: ModelSpec) -> LoadedModel:
        if self._loaded is None or self._spec != spec:
            self.close()
            self._loaded = load(spec, cache_dir=self._cache_dir, roots=self._roots)
            self._spec = spec
        return self._loaded

    def _session(self, spec: EvaluationSpec) -> Session:
        # The seed draws intervals only.
        key = replace(spec, seed=0)
        loaded = self._model(spec.model)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key]
        if len(self._sessions) >= _SESSIONS:
            self._sessions.popitem(last=False)
            self._profiler = None
            # What its captured layers held counts as theirs until then, and the next session would be planned without.
            _give_memory_back()
        session = Session(loaded, key)
        self._sessions[key] = session
        return session

    def _layer(self, session: Session, layer: int) -> LayerProfiler:
        """The layer measured last, whose pairs come one a task, or another one."""
        known = self._profiler
        if known is None or known.session is not session or known.layer != layer:
            self._profiler = None
            known = self._profiler = LayerProfiler(session, layer)
        return known

    @contextlib.contextmanager
    def _out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            # torch raises a plain RuntimeError where the CPU's memory is used up.
            if not is_out_of_memory(error):
                raise
            self.close()
            raise ComputeError(
                "The device ran out of memory. Use fewer prompts, a lower prefix_tokens or max_new_tokens, "
                "a smaller dtype, or a smaller model."
            ) from error


def _give_memory_back() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
