"""What a command says: one JSON document or text on stdout, progress on a terminal's stderr."""

import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar

from kvtuner_core.domain.runs import Progress
from kvtuner_core.errors import KVTunerError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a command writes.

    Attributes:
        stdout: Results.
        stderr: Progress and remarks.
        as_json: Whether stdout gets exactly one JSON document and nothing else.
    """

    stdout: TextIO
    stderr: TextIO
    as_json: bool

    def document(self, value: Mapping[str, object]) -> None:
        """Write the one JSON document; numbers that are not finite become null."""
        self._write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")

    def text(self, text: str, *, end: str = "\n") -> None:
        """Write readable text."""
        self._write(text + end)

    def _write(self, text: str) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise KVTunerError(
                f"Standard output must take the whole result; writing failed: {error.strerror or error}. "
                "Make room where it goes, or send it elsewhere; what was measured is stored."
            ) from error

    def remark(self, text: str) -> None:
        """Write a line beside the result."""
        self.stderr.write(text + "\n")
        self.stderr.flush()

    def follow(self, steps: Generator[Progress, None, T]) -> T:
        """Run work to its end with progress bars where stderr is a terminal; returns its result."""
        with _Display(self.stderr) as display:
            try:
                while True:
                    display.show(next(steps))
            except StopIteration as finished:
                result: T = finished.value
                return result
            finally:
                steps.close()


class _Display(AbstractContextManager["_Display"]):
    """One bar a stage; nothing where nobody watches."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: Bars | None = None
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> "_Display":
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[message]}", markup=False),
                console=Console(file=self._stream),
            )
            self._bars.start()
        return self

    def show(self, progress: Progress) -> None:
        """Bring the stage's bar up to date."""
        if self._bars is None:
            return
        if progress.stage not in self._stages:
            self._stages[progress.stage] = self._bars.add_task(progress.stage, total=None, message="")
        reused = f"{progress.reused} stored before · " if progress.reused else ""
        self._bars.update(
            self._stages[progress.stage],
            completed=progress.done,
            total=progress.total or None,
            message=reused + progress.message,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text under a header; numbers to the right."""
    cells = [[str(name) for name in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True
