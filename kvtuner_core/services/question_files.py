"""Questions of a task: the shipped ones, a user's file, or made from a seed."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.prompts import PromptKind
from kvtuner_core.domain.questions import Question, TaskKind
from kvtuner_core.domain.tasks import CountTask, TokenCounts
from kvtuner_core.errors import PromptError
from kvtuner_core.services.files import read_limited
from kvtuner_core.services.prompt_files import MAX_BYTES, MAX_CHARACTERS, is_unicode
from kvtuner_core.services.prompts import shipped_of_kind
from kvtuner_core.services.recall import Measure, RecallSpec, recall_questions
from kvtuner_core.services.work import answer_of
from kvtuner_core.services.workspace import DATA_FOLDER, Workspace, is_allowed

TASK_FOLDER = DATA_FOLDER / "tasks"
"""The shipped questions, a file a task."""

MAX_QUESTIONS = 2_000


class _Row(BaseModel):
    """One line of a file; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    answer: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    choices: list[str] = Field(default_factory=list, max_length=64)
    solution: str = Field(default="", max_length=MAX_CHARACTERS)
    stop: str = Field(default="", max_length=100)
    max_new_tokens: int = Field(default=0, ge=0, le=8192)


def read_questions(kind: TaskKind, name: str, data: bytes) -> tuple[Question, ...]:
    """The questions of a ``.jsonl`` file: one object a line with ``prompt`` and ``answer``.

    Args:
        kind: The task; multiple choice also needs ``choices``, one of which is the answer.
        name: The file's name, for errors.
        data: Its bytes, UTF-8.

    Raises:
        PromptError: Naming the file, the line and the rule.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"A file of questions is UTF-8 text; {name!r} is not. Convert it.") from error
    found = tuple(_question(kind, f"Line {n} of {name!r}", line) for n, line in enumerate(lines, 1) if line.strip())
    if not 1 <= len(found) <= MAX_QUESTIONS:
        raise PromptError(f"A file of questions holds 1 to {MAX_QUESTIONS}; {name!r} has {len(found)}.")
    return found


def _question(kind: TaskKind, where: str, line: str) -> Question:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the line"
        raise PromptError(f"{where} must be an object with prompt and answer; {place}: {first['msg']}.") from None
    if not all(is_unicode(text) for text in (row.prompt, row.answer, row.solution, row.stop, *row.choices)):
        raise PromptError(f"{where} must be valid Unicode; it holds half a surrogate pair.")
    if kind is TaskKind.MULTIPLE_CHOICE and (row.answer not in row.choices or not all(row.choices)):
        raise PromptError(f"{where} must have choices that are not empty, one of which is the answer.")
    return Question(
        kind=kind,
        prompt=row.prompt,
        answer=row.answer,
        choices=tuple(row.choices) if kind is TaskKind.MULTIPLE_CHOICE else (),
        solution=row.solution,
        stop=row.stop,
        max_new_tokens=row.max_new_tokens,
    )


def shipped_questions(kind: TaskKind, items: int) -> tuple[Question, ...]:
    """The first ``items`` shipped questions of a task other than recall.

    Raises:
        PromptError: If there are not so many.
    """
    path = TASK_FOLDER / f"{kind}.jsonl"
    return _first(read_questions(kind, path.name, path.read_bytes()), items, path.name)


def file_questions(ws: Workspace, kind: TaskKind, reference: str, items: int) -> tuple[Question, ...]:
    """The first ``items`` questions of a user's ``.jsonl`` file.

    Raises:
        PromptError: If it cannot be read, is not allowed, or holds fewer.
    """
    path = Path(reference).expanduser()
    if path.suffix.lower() != ".jsonl":
        raise PromptError(f"Questions come in a .jsonl file; got {reference!r}.")
    if not is_allowed(path, ws.settings.model_roots):
        raise PromptError(f"Files must lie in a folder that KVTUNER_MODEL_ROOTS allows; got {reference!r}.")
    return _first(
        read_questions(kind, path.name, read_limited(path, MAX_BYTES, what="file of questions")), items, path.name
    )


def _first(found: tuple[Question, ...], items: int, name: str) -> tuple[Question, ...]:
    if not 1 <= items <= len(found):
        raise PromptError(f"items must be from 1 to the {len(found)} of {name!r}; got {items}.")
    return found[:items]


def made_questions(ws: Workspace, model: ModelSpec, spec: RecallSpec) -> tuple[Question, ...]:
    """Recall questions; a wanted length is counted in tokens of the model, filled with shipped prose.

    Raises:
        InputError: If pairs and length do not go together.
    """
    if spec.length is None:
        return tuple(recall_questions(spec))
    filler = [prompt.text for prompt in shipped_of_kind(PromptKind.PROSE).prompts]
    return tuple(recall_questions(spec, filler=filler, measure=_tokens(ws, model)))


def _tokens(ws: Workspace, model: ModelSpec) -> Measure:
    known: dict[str, int] = {}

    def measure(texts: Sequence[str]) -> list[int]:
        wanted = list(texts)
        new = tuple(dict.fromkeys(text for text in wanted if text not in known))
        if new:
            answer = answer_of(TokenCounts, ws.compute.run(CountTask(model=model, texts=new)))
            known.update(zip(new, answer.counts, strict=True))
        return [known[text] for text in wanted]

    return measure
