"""Which GPUs this machine offers, found without importing torch."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

_GPU = re.compile(r"GPU \d+: (.+) \(UUID: (GPU-[\w-]+)\)")
_SLICE = re.compile(r"\s+MIG (\S+) .*\(UUID: (MIG-[\w/-]+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one slice of a divided GPU.

    Attributes:
        id: What ``CUDA_VISIBLE_DEVICES`` takes.
        name: Readable name.
    """

    id: str
    name: str


def list_gpus() -> tuple[Gpu, ...]:
    """The GPUs a worker may use, ``CUDA_VISIBLE_DEVICES`` obeyed; empty where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = shutil.which("nvidia-smi")
    listed = parse_gpus(_ask(driver)) if driver else ()
    return listed if visible is None else select_gpus(listed, visible)


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """Read what ``nvidia-smi -L`` prints; a divided GPU counts through its slices."""
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in listing.splitlines():
        gpu, part = _GPU.match(line), _SLICE.match(line)
        if gpu:
            whole = Gpu(id=gpu[2], name=gpu[1])
            found.append(whole)
        elif part and whole is not None:
            if whole in found:
                found.remove(whole)
            found.append(Gpu(id=part[2], name=f"{whole.name} {part[1]}"))
    return tuple(found)


def select_gpus(listed: tuple[Gpu, ...], visible: str) -> tuple[Gpu, ...]:
    """The GPUs that a value of ``CUDA_VISIBLE_DEVICES`` names, in its order.

    Numbers are passed on as they are, because CUDA may count in another order than the driver.
    As in CUDA, the list ends at the first entry that is not there, such as ``-1``.
    """
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        by_id = next((gpu for gpu in listed if entry and gpu.id.startswith(entry)), None)
        if by_id is not None:
            chosen.append(by_id)
        elif entry.isdigit() and int(entry) < len(listed):
            names = {gpu.name for gpu in listed}
            chosen.append(Gpu(id=entry, name=names.pop() if len(names) == 1 else f"GPU {entry}"))
        else:
            break
    return tuple(chosen)


def _ask(driver: str) -> str:
    try:
        asked = subprocess.run([driver, "-L"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout
