"""JSON from strangers: bounded, without duplicate keys, and with finite numbers only."""

import json
import math
from typing import Any, NoReturn

from kvtuner_core.errors import PolicyError

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Largest policy file that is read."""

_SHOWN = 60


def one_line(text: str) -> str:
    """``text`` with everything that is not printable written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object) -> str:
    """A short, one-line picture of ``value`` for a message."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = one_line(repr(value))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def read_json(data: str | bytes, *, what: str) -> Any:
    """Parse ``data``.

    Args:
        data: The file's content; bytes are UTF-8, with or without a byte order mark.
        what: What the file is, for messages.

    Raises:
        PolicyError: If it is too large, not UTF-8, not JSON, nested too deeply, has a key twice in
            one object, or holds a number that is not finite.
    """
    text = read_text(data, what=what, limit=MAX_FILE_BYTES)
    try:
        return json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except PolicyError as error:
        raise PolicyError(f"{what}: {error}") from None
    except json.JSONDecodeError as error:
        raise PolicyError(
            f"{what} must be JSON; line {error.lineno}, column {error.colno}: {one_line(error.msg)}. "
            "Use a file that was written by this program."
        ) from None
    except RecursionError:
        raise PolicyError(f"{what} may nest a few levels deep; this file nests hundreds. Use another file.") from None
    except ValueError:
        raise PolicyError(f"{what} may hold numbers of up to 20 digits; got a longer one. Correct it.") from None


def read_text(data: str | bytes, *, what: str, limit: int) -> str:
    """``data`` as text of at most ``limit`` bytes.

    Raises:
        PolicyError: If it is larger, or not UTF-8.
    """
    if len(data) > limit:
        raise PolicyError(f"{what} may have at most {limit // 1024} KiB; this one has more. Use another file.")
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{what} must be UTF-8 text; byte {error.start} is not. Use another file.") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise PolicyError(f"a key may stand once in an object; got {shown(key)} twice. Remove one.")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise PolicyError(f"numbers must be finite; got {name}. Correct it or leave the entry out.")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise PolicyError(f"numbers must be finite; got {shown(text)}. Correct it or leave the entry out.")
    return value
