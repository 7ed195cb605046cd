"""Reads files within limits and writes them whole or not at all."""

import secrets
from pathlib import Path

from kvtuner_core.errors import InputError


def read_limited(path: Path, limit: int, *, what: str) -> bytes:
    """The bytes of a regular file; of a longer one than ``limit`` bytes, one byte more than the limit.

    Raises:
        InputError: If the file is missing, not a regular file or unreadable.
    """
    try:
        if not path.is_file():
            raise InputError(f"A {what} must be an existing file; got {str(path)!r}. Check the path.")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"A {what} must be readable; got {str(path)!r} ({_reason(error)}).") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never a part.

    What is there and is no regular file, such as ``/dev/stdout`` or a pipe, is written to as it is: it must not
    be replaced by a file.

    Raises:
        InputError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                stream.write(data)
            return
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"The output file must be writable; got {str(path)!r} ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
