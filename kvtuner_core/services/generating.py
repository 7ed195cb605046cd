"""Text generated from a really quantised cache, token by token."""

import threading
from collections.abc import Generator
from dataclasses import dataclass
from queue import SimpleQueue

from kvtuner_core.domain.runs import Progress, RunKind
from kvtuner_core.domain.tasks import GenerateTask, Generation, TokenEvent
from kvtuner_core.errors import InputError
from kvtuner_core.services.prompt_files import MAX_CHARACTERS, is_unicode
from kvtuner_core.services.requests import MAX_SEED, MAX_TOKENS, check_between
from kvtuner_core.services.work import Cancelled, answer_of, never, new_record, start
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import from_json, to_json

GENERATION_STAGE = "generation"


def check_generation(task: GenerateTask) -> None:
    """Raise `InputError` for a generation that cannot be run on any model."""
    if not task.prompt.strip():
        raise InputError("A generation needs a prompt; got an empty one. Give some text.")
    if len(task.prompt) > MAX_CHARACTERS:
        raise InputError(f"A prompt has at most {MAX_CHARACTERS} characters; got {len(task.prompt)}. Shorten it.")
    if not is_unicode(task.prompt):
        raise InputError("A prompt must be valid Unicode; it holds half a surrogate pair or bytes that are not UTF-8.")
    check_between("max_new_tokens", task.max_new_tokens, 1, MAX_TOKENS)
    check_between("seed", task.seed, 0, MAX_SEED)
    if not 0 <= task.temperature <= 100:
        raise InputError(f"temperature must be from 0 (greedy) to 100; got {task.temperature!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """The last thing a generating thread says: its answer, or what it raised."""

    answer: object = None
    error: BaseException | None = None


def generate(ws: Workspace, task: GenerateTask, cancelled: Cancelled = never) -> Generator[Progress, None, Generation]:
    """Generate text; a generation that is cancelled ends early and returns what there is.

    Args:
        ws: The workspace.
        task: Model, policy, prompt and how to sample.
        cancelled: Polled at each token. Leaving the generator early stops the model too.

    Yields:
        A `Progress` per token with its `TokenEvent` as the event.

    Raises:
        InputError: If the request does not fit.
        KVTunerError: What the model work raised.
    """
    check_generation(task)
    yield Progress(stage=GENERATION_STAGE, done=0, total=task.max_new_tokens, message=f"Reading {task.model.reference}")
    events: SimpleQueue[object] = SimpleQueue()
    left = threading.Event()

    def work() -> None:
        try:
            answer = ws.compute.run(task, emit=events.put, cancelled=lambda: left.is_set() or cancelled())
            events.put(_End(answer=answer))
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, which raises it
            events.put(_End(error=error))

    thread = threading.Thread(target=work, name="generation", daemon=True)
    thread.start()
    done = 0
    try:
        while not isinstance(event := events.get(), _End):
            done += isinstance(event, TokenEvent)
            yield Progress(stage=GENERATION_STAGE, done=done, total=task.max_new_tokens, event=event)
    finally:
        left.set()
        thread.join()
    if event.error is not None:
        raise event.error
    return answer_of(Generation, event.answer)


def start_generation(ws: Workspace, task: GenerateTask) -> str:
    """Queue `generate` and keep what it makes; returns the run's id.

    Raises:
        InputError: If the request does not fit any model.
    """
    check_generation(task)
    name = task.policy.name if task.policy else "full precision"
    record = new_record(RunKind.GENERATION, title=f"Generate with {task.model.reference}, {name}", spec=to_json(task))
    return start(ws, record, lambda run, cancelled: _kept(ws, run, generate(ws, task, cancelled)))


def _kept(
    ws: Workspace, run: str, steps: Generator[Progress, None, Generation]
) -> Generator[Progress, None, Generation]:
    result = yield from steps
    ws.store.put_result(run, to_json(result))
    return result


def load_generation(ws: Workspace, run: str) -> Generation | None:
    """What a run generated, or ``None`` while there is nothing."""
    text = ws.store.get_result(run)
    return None if text is None else from_json(Generation, text)
