"""Reads prompts from ``.jsonl`` and ``.txt`` bytes, within limits."""

import json
from pathlib import PurePath

from kvtuner_core.domain.prompts import Prompt
from kvtuner_core.errors import PromptError

MAX_BYTES = 8 * 2**20
MAX_PROMPTS = 2_000
MAX_CHARACTERS = 200_000
SUFFIXES = (".jsonl", ".txt")
_SEPARATOR = "---"


def read_prompts(filename: str, data: bytes) -> tuple[Prompt, ...]:
    """The prompts of a file.

    A ``.jsonl`` file has one JSON object a line, with ``text``, or with ``prompt`` and
    ``completion``; other keys and empty lines are ignored. A ``.txt`` file is one text; a line of
    nothing but ``---`` starts the next one.

    Args:
        filename: Tells the format and is named in errors.
        data: The file's bytes, UTF-8, at most 8 MiB.

    Raises:
        PromptError: Naming the file, the line and the rule.
    """
    name = PurePath(filename).name
    suffix = PurePath(filename).suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptError(f"A prompt file ends in .jsonl or .txt; got {name!r}.")
    if len(data) > MAX_BYTES:
        raise PromptError(f"A prompt file has at most {MAX_BYTES} bytes (8 MiB); {name!r} has more. Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PromptError(f"A prompt file is UTF-8 text; {name!r} is not in line {line}. Convert it.") from error
    prompts = _from_jsonl(name, text) if suffix == ".jsonl" else _from_txt(name, text)
    if not prompts:
        raise PromptError(f"A prompt file holds at least one text; {name!r} has none.")
    return prompts


def _from_jsonl(name: str, text: str) -> tuple[Prompt, ...]:
    prompts: list[Prompt] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            prompts.append(_row(f"Line {number} of {name!r}", line))
            _check_count(name, len(prompts))
    return tuple(prompts)


def _row(where: str, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} must be one JSON object; it is not valid JSON.") from error
    if not isinstance(row, dict):
        raise PromptError(f"{where} must be a JSON object with text, or prompt and completion; got another value.")
    if "text" in row and ("prompt" in row or "completion" in row):
        raise PromptError(f"{where} must have either text, or prompt and completion; got both.")
    if "text" in row:
        return Prompt(text=_field(where, row, "text"))
    if "prompt" in row and "completion" in row:
        return _checked(where, Prompt(text=_field(where, row, "prompt"), completion=_field(where, row, "completion")))
    raise PromptError(f"{where} must have text, or prompt and completion; it has neither.")


def _field(where: str, row: dict[str, object], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{where} must give {key} as text that is not empty.")
    return _sound(where, value)


def _sound(where: str, value: str) -> str:
    if len(value) > MAX_CHARACTERS:
        raise PromptError(f"{where} may have {MAX_CHARACTERS} characters; got {len(value)}. Split the text.")
    if not is_unicode(value):
        raise PromptError(f"{where} must be valid Unicode; it holds half a surrogate pair.")
    return value


def is_unicode(text: str) -> bool:
    """Whether no tokenizer will stumble over half a surrogate pair (JSON and command lines can bring some)."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _checked(where: str, prompt: Prompt) -> Prompt:
    _sound(where, prompt.text + prompt.completion)
    return prompt


def _from_txt(name: str, text: str) -> tuple[Prompt, ...]:
    prompts: list[Prompt] = []
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*text.split("\n"), _SEPARATOR], start=1):
        if line.strip() != _SEPARATOR:
            lines.append(line)
            continue
        body = "\n".join(lines).strip("\r\n")
        if body.strip():
            prompts.append(Prompt(text=_sound(f"The text from line {start} of {name!r}", body)))
            _check_count(name, len(prompts))
        lines, start = [], number + 1
    return tuple(prompts)


def _check_count(name: str, count: int) -> None:
    if count > MAX_PROMPTS:
        raise PromptError(f"A prompt file holds at most {MAX_PROMPTS} texts; {name!r} has more. Split it.")
