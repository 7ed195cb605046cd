"""Reads a model's configuration in a process of its own, which ends with the answer.

Reading one means importing torch and transformers, which takes seconds and hundreds of megabytes;
a program that shows pages stays without them.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

from pydantic import TypeAdapter

from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.errors import ComputeError, ModelError

_LONGEST = 300.0
_REFUSED = 3
_KEPT = 64


class Describer:
    """Describes models, each version of one once."""

    def __init__(self, *, cache_dir: Path, roots: tuple[Path, ...] | None) -> None:
        self._arguments = [str(cache_dir), "" if roots is None else os.pathsep.join(map(str, roots))]
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], ModelInfo] = {}

    def describe(self, reference: str, *, version: str) -> ModelInfo:
        """Geometry of a model from its configuration alone; a second caller waits for the first.

        Args:
            reference: As in a `ModelSpec`.
            version: Changes when the model's files do; empty where that is not known.

        Raises:
            ModelError: If there is no such model, or its cache cannot be quantised.
            ComputeError: If the process died.
        """
        with self._lock:
            known = self._known.get((reference, version))
            if known is None:
                known = self._ask(reference)
                if version:
                    while len(self._known) >= _KEPT:
                        self._known.pop(next(iter(self._known)))
                    self._known[reference, version] = known
            return known

    def _ask(self, reference: str) -> ModelInfo:
        command = [sys.executable, "-m", __name__, reference, *self._arguments]
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            # Our own program; the reference is one argument of it and was checked before.
            found = subprocess.run(  # noqa: S603
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=_LONGEST,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise ComputeError(f"The model's configuration could not be read ({error}). Try again.") from error
        lines = found.stdout.splitlines() or [""]
        if found.returncode == _REFUSED:
            raise ModelError(lines[-1])
        if found.returncode:
            last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
            raise ComputeError(f"The model's configuration could not be read ({last[:200]}). Check its files.")
        return TypeAdapter(ModelInfo).validate_json(lines[-1])


def main(reference: str, cache_dir: str, roots: str) -> int:
    """The process: write the `ModelInfo` as one line of JSON, or why there is none; returns the exit code."""
    from kvtuner_core.runtime.loading import describe

    allowed = tuple(Path(root) for root in roots.split(os.pathsep)) if roots else None
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        info = describe(reference, cache_dir=Path(cache_dir), roots=allowed)
    except ModelError as error:
        sys.stdout.write("\n" + " ".join(str(error).split()) + "\n")
        return _REFUSED
    sys.stdout.write("\n" + TypeAdapter(ModelInfo).dump_json(info).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
