"""Domain values as JSON text and back, without loss; an infinite KL is written ``Infinity``."""

import functools
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kvtuner_core.errors import StoreError

T = TypeVar("T")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(value: object) -> str:
    """One domain value (a dataclass) as compact JSON text.

    Infinite floats are kept as ``Infinity``, which `from_json` and Python's own json read.
    """
    kind: Any = type(value)
    return json.dumps(_adapter(kind).dump_python(value, mode="json"), separators=(",", ":"))


def from_json(kind: type[T], text: str | bytes) -> T:
    """Read what `to_json` wrote of a value of type ``kind``.

    Raises:
        StoreError: If ``text`` is not such a value.
    """
    wanted: Any = kind
    try:
        value: T = _adapter(wanted).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise StoreError(
            f"A stored {kind.__name__} cannot be read: {place}: {first['msg']}. Delete that run and start it again."
        ) from None
    return value
