"""Where a worker's numbers come from: device, dtype, versions, free memory."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

import psutil
import torch
import transformers

from kvtuner_core.domain.provenance import Provenance, utc_now


def provenance(device: torch.device, dtype: torch.dtype) -> Provenance:
    """What a number computed now on ``device`` depends on besides its key."""
    return Provenance(
        created=utc_now(),
        device=device_name(device),
        device_type=device.type,
        dtype=dtype_name(dtype),
        versions=(
            ("kvtuner", _own_version()),
            ("torch", str(torch.__version__)),
            ("transformers", transformers.__version__),
            ("python", platform.python_version()),
        ),
    )


def device_name(device: torch.device) -> str:
    """Readable name, such as ``cpu (2 threads)`` or ``NVIDIA H200``."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({torch.get_num_threads()} threads)"


def dtype_name(dtype: torch.dtype) -> str:
    """Name without the library, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def device_memory(device: torch.device) -> tuple[int, int]:
    """Free and total memory of the device in bytes; what torch holds unused counts as free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused), int(total)
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def captured_memory(device: torch.device) -> int:
    """Bytes that captured graphs keep for themselves: torch counts them as unused, yet nobody else may have them."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    own = (
        segment for segment in segments if segment["device"] == device.index and any(segment.get("segment_pool_id", ()))
    )
    return sum(int(segment["total_size"]) - int(segment["allocated_size"]) for segment in own)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the host, where torch says so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _own_version() -> str:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version("kvtuner")
    except metadata.PackageNotFoundError:
        return "unknown"
