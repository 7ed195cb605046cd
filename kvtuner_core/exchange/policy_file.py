"""``policy.json``: a `PolicyDocument` to text and back, with everything checked on the way in."""

import json
import math
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kvtuner_core.domain.document import PolicyDocument
from kvtuner_core.domain.memory import bytes_per_token, check_layers, effective_bits
from kvtuner_core.errors import InputError, PolicyError
from kvtuner_core.exchange.entries import document_of, entry_of
from kvtuner_core.exchange.policy_models import FORMAT, VERSION, PolicyFile
from kvtuner_core.exchange.strict_json import one_line, read_json, shown

_WHAT = "A policy file"
_TOLERANCE = 1e-6


def document_to_json(document: PolicyDocument) -> str:
    """The document as ``policy.json``, readable, with a line break at the end.

    Raises:
        PolicyError: If a number is not finite, or the document breaks a rule of the format.
    """
    try:
        entry = entry_of(document)
    except ValidationError as error:
        raise _first_problem(error) from None
    _check(document)
    return json.dumps(entry.model_dump(exclude_unset=True), indent=2, ensure_ascii=False) + "\n"


def document_from_json(text: str | bytes) -> PolicyDocument:
    """Read a ``policy.json``; what comes back is consistent in itself.

    Args:
        text: The file's content.

    Raises:
        PolicyError: One line that names the rule, the value, and the way out.
    """
    data = read_json(text, what=_WHAT)
    _check_format(data)
    try:
        document = document_of(PolicyFile.model_validate(data))
    except ValidationError as error:
        raise _first_problem(error) from None
    except InputError as error:
        raise PolicyError(f"{_WHAT}: {one_line(str(error))}") from None
    _check(document)
    return document


def json_schema() -> dict[str, Any]:
    """The format as JSON Schema (draft 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PolicyFile.model_json_schema(),
        "title": f"{FORMAT} {VERSION}",
    }


def _check_format(data: object) -> None:
    if not isinstance(data, dict):
        raise PolicyError(f"{_WHAT} must be a JSON object; got {shown(data)}. Use a file with format {FORMAT!r}.")
    if data.get("format") != FORMAT:
        found = shown(data["format"]) if "format" in data else "none"
        raise PolicyError(
            f"{_WHAT} must say format {FORMAT!r}; got {found}. Import files of other tools with the import command."
        )
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise PolicyError(
            f"{_WHAT} must say its version as a whole number from 1; got {shown(version)}. Use {VERSION}."
        )
    if version > VERSION:
        raise PolicyError(
            f"{_WHAT} may have version {VERSION}; got {shown(version)}, which is newer. Update KVTuner to read it."
        )


def _check(document: PolicyDocument) -> None:
    policy, shapes = document.policy, document.model.layers
    try:
        if shapes:
            check_layers(policy, shapes)
    except InputError as error:
        raise PolicyError(f"{_WHAT}: {one_line(str(error))}") from None
    _compare("memory.nominal_bits", document.nominal_bits, policy.nominal_bits)
    if not shapes:
        return
    if document.effective_bits is not None:
        _compare("memory.effective_bits", document.effective_bits, effective_bits(policy, shapes))
    if document.bytes_per_token is not None:
        _compare("memory.bytes_per_token", document.bytes_per_token, bytes_per_token(policy, shapes))


def _compare(name: str, given: float, computed: float) -> None:
    if not math.isclose(given, computed, rel_tol=_TOLERANCE):
        raise PolicyError(
            f"{_WHAT}: {name} must be {computed:.9g} by the layers and the geometry; got {given:.9g}. "
            "Correct it, or undo the change to the layers."
        )


def _first_problem(error: ValidationError) -> PolicyError:
    problems = error.errors(include_url=False, include_context=False)
    # A missing key is named before the keys that nobody expects: it is most often the same one, misspelt.
    problem = min(problems, key=lambda item: item["type"] == "extra_forbidden")
    return PolicyError(f"{_WHAT}: {_place(problem)} {_rule(problem)}")


def _place(problem: ErrorDetails) -> str:
    text = ""
    for part in problem["loc"]:
        name = part if isinstance(part, int) or part.isidentifier() else shown(part)
        text += f"[{name}]" if isinstance(part, int) else f".{name}"
    text = text.removeprefix(".")
    return text if len(text) <= 120 else text[:119] + "…"


def _rule(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return "is needed; got nothing. Add it."
    if problem["type"] == "extra_forbidden":
        return "is not a key of this format. Remove it."
    message = one_line(problem["msg"]).removeprefix("Input ")
    if problem["type"] == "int_parsing_size":
        message = "should be a whole number of at most 20 digits"
    return f"{message}; got {shown(problem['input'])}. Correct it."
