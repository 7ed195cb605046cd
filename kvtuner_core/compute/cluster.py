"""The Dask workers of this machine: one process per GPU, or some that share the CPU, on loopback."""

import logging
import os
from typing import Any

from kvtuner_core.compute.devices import Gpu

_HOST = "127.0.0.1"

_CONFIG: tuple[tuple[str, object], ...] = (
    # A task is given up after the fourth worker it has killed.
    ("distributed.scheduler.allowed-failures", 3),
    # A worker busy with a long kernel or a slow load is not dead.
    ("distributed.scheduler.worker-ttl", None),
    ("distributed.scheduler.work-stealing", False),
    ("distributed.scheduler.active-memory-manager.start", False),
    # Models are large on purpose: no spilling, pausing or killing by size.
    ("distributed.worker.memory.target", False),
    ("distributed.worker.memory.spill", False),
    ("distributed.worker.memory.pause", False),
    ("distributed.worker.memory.terminate", False),
    ("distributed.worker.profile.enabled", False),
    ("distributed.admin.tick.limit", "1h"),
    ("distributed.diagnostics.nvml", False),
    # Dask's own defaults would set one thread for BLAS, in this process too.
    ("distributed.nanny.pre-spawn-environ", {}),
)


def start_cluster(gpus: tuple[Gpu, ...], *, workers: int = 1) -> Any:
    """Start a scheduler in this process and one worker process per GPU, or without any, some for the CPU.

    The processes end when this one does, however it ends. They talk over TLS with a certificate made
    for this cluster and kept in memory: a scheduler runs what it is sent, and a loopback port is open
    to every user of the machine.

    Args:
        gpus: Each worker sees one of them alone.
        workers: Workers without a GPU; they share the cores.

    Returns:
        A ``distributed.SpecCluster``.

    Raises:
        RuntimeError: If a process does not start.
        OSError: Likewise.
    """
    import dask
    import distributed

    environments = [{"CUDA_VISIBLE_DEVICES": gpu.id} for gpu in gpus] or [{}] * workers
    threads = str(max(1, _cores() // len(environments)))
    security: Any = distributed.Security
    secured = {"security": security.temporary(), "protocol": "tls"}
    processes = {
        number: {
            "cls": distributed.Nanny,
            "options": {
                "host": _HOST,
                **secured,
                "nthreads": 1,
                "memory_limit": 0,
                "dashboard": False,
                "silence_logs": logging.ERROR,
                "env": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | environment,
            },
        }
        for number, environment in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": _HOST, "dashboard": False, "dashboard_address": f"{_HOST}:0", **secured},
    }
    cluster: Any = distributed.SpecCluster
    with dask.config.set(dict(_CONFIG)):
        return cluster(
            workers=processes,
            scheduler=scheduler,
            security=secured["security"],
            silence_logs=logging.ERROR,
            name="kvtuner",
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
