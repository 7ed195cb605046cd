"""Times sweeps, the default study and searches: ``python -m tests.benchmarks.search --json [--only cpu|gpu]``.

Rows, each with its peak memory: ``sweep`` (the bundled model, 30 layers x 9 pairs, 16 prompts of 512 + 128 tokens, into
a new store), ``study`` (the default study, into a new store), and on a GPU, on a model of Llama-3.1-8B's geometry with
random weights, ``sweep_32k`` (32 layers x 15 pairs, one prompt of 32,768 + 128 tokens), ``search_32k`` (500 true
evaluations) and ``speedup_over_full_forward`` (an evaluation there against a full forward pass).

On a CPU every row runs in a process of its own, and ``sweep`` has the time beside it that its matrix products would
take at the rate that this machine reaches in float32: no exact sweep in float32 is faster.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kvtuner_core.domain.model import DeviceChoice, ModelSpec
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.study import SearchSpec, SweepSpec
from kvtuner_core.services.searching import search
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.workspace import Settings, Workspace
from tests.benchmarks import long_context

Row = dict[str, Any]

_RATE_SHAPE = (2048, 576, 1536)
_RATE_ROUNDS = 40


def spec_of(device: DeviceChoice) -> ModelSpec:
    """The bundled model, or the one named by ``KVTUNER_BENCH_MODEL``, on a device."""
    reference = os.environ.get("KVTUNER_BENCH_MODEL")
    return ModelSpec(reference=reference, device=device) if reference else ModelSpec(device=device)


def last(steps: Generator[Any, None, Any]) -> Any:
    """What long work returns, its place on stderr."""
    try:
        while True:
            progress = next(steps)
            print(f"\r{progress.stage} {progress.done}/{progress.total}    ", end="", file=sys.stderr)
    except StopIteration as finished:
        return finished.value
    finally:
        print(file=sys.stderr)


def in_new_store(work: Callable[[Workspace], Any]) -> tuple[Any, float]:
    """What work in a workspace with a new store returns, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environment().with_store(Path(folder) / "bench.duckdb")
        with Workspace.open(settings, inline=True) as workspace:
            started = time.perf_counter()
            result = work(workspace)
            return result, time.perf_counter() - started


def sweep_row(device: DeviceChoice) -> Row:
    """A full sweep: local errors and isolated KL of every layer and pair."""
    spec = SweepSpec(model=spec_of(device), limit=16, suffix_tokens=128)
    result, seconds = in_new_store(lambda workspace: last(sweep(workspace, spec)))
    row: Row = {"seconds": seconds, "model": result.model.name, "profiles": len(result.profiles), "prompts": spec.limit}
    if device is DeviceChoice.CPU:
        operations = sweep_operations(result.model, spec)
        rate = matrix_rate()
        row |= {"tera_operations": operations / 1e12, "giga_operations_per_second": rate / 1e9}
        row["bound_seconds"] = operations / rate
    return row


def sweep_operations(model: Any, spec: SweepSpec) -> float:
    """Operations of the matrix products of all isolated KLs: the layers from the changed one on, and the head."""
    tokens = spec.limit * spec.suffix_tokens
    layers, hidden = len(model.layers), model.hidden_size
    weights = (model.parameters - model.vocabulary * hidden) / layers
    attended = spec.prefix_tokens + 1.5 * spec.suffix_tokens
    layer = 2 * weights + 4 * model.query_heads * model.layers[0].key_dim * attended
    passes = len(candidate_pairs(spec.bits))
    return passes * tokens * (layer * layers * (layers + 1) / 2 + layers * 2 * hidden * model.vocabulary)


def matrix_rate() -> float:
    """Operations a second of float32 matrix products of the size that a pass makes, the best of some rounds."""
    import torch

    from kvtuner_core.runtime.products import linear

    rows, inner, columns = _RATE_SHAPE
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    times = []
    for _ in range(_RATE_ROUNDS):
        started = time.perf_counter()
        linear(left, right)
        times.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(times)


def study_row(device: DeviceChoice) -> Row:
    """The default study; ``deciding_seconds``: its search once more, with all scores stored."""
    spec = SearchSpec(sweep=SweepSpec(model=spec_of(device)))

    def work(workspace: Workspace) -> tuple[Any, float, Any]:
        started = time.perf_counter()
        result = last(search(workspace, spec))
        return result, time.perf_counter() - started, last(search(workspace, spec))

    (result, seconds, again), _ = in_new_store(work)
    return {
        "seconds": seconds,
        "model": result.sweep.model.name,
        "seconds_by_part": dict(result.seconds),
        "deciding_seconds": dict(again.seconds)["search"],
        "evaluations": len(result.candidates),
        "front": len(result.front),
        "hypervolume": result.hypervolume,
    }


_BUNDLED = MappingProxyType({"sweep": sweep_row, "study": study_row})
_LONG = ("sweep_32k", "search_32k", "speedup_over_full_forward")


def cpu_rows(names: list[str]) -> list[Row]:
    """Each row in a process of its own, so that its peak memory is its own."""
    rows = []
    for name in names:
        command = [sys.executable, "-m", "tests.benchmarks.search", "--json", "--only", "cpu", "--row", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows += json.loads(done.stdout)["rows"]
    return rows


def cpu_row(name: str) -> Row:
    """One row in this process."""
    import resource

    row = _BUNDLED[name](DeviceChoice.CPU)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"what": name, "device": "cpu", **row, "peak_bytes": peak}


def gpu_rows(names: list[str]) -> list[Row]:
    """The rows on the GPU, one after the other."""
    import torch

    rows = []
    for name in (name for name in names if name in _BUNDLED):
        torch.cuda.reset_peak_memory_stats()
        row = _BUNDLED[name](DeviceChoice.CUDA)
        rows.append({"what": name, "device": "cuda", **row, "peak_bytes": torch.cuda.max_memory_allocated()})
        torch.cuda.empty_cache()
    wanted = [name for name in names if name in _LONG]
    return [*rows, *(long_context.rows(wanted) if wanted else [])]


def device_name() -> str:
    """The GPU, or the processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"


def main() -> None:
    """Print JSON, or a line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", choices=("cpu", "gpu"), help="leave the other device out")
    parser.add_argument("--row", action="append", choices=[*_BUNDLED, *_LONG], help="this row alone; repeatable")
    options = parser.parse_args()
    import torch
    import transformers

    names = options.row or [*_BUNDLED, *_LONG]
    rows: list[Row] = []
    if options.only != "gpu":
        cpu = [name for name in names if name in _BUNDLED]
        rows += [cpu_row(cpu[0])] if options.row and len(cpu) == 1 else cpu_rows(cpu)
    if options.only != "cpu" and torch.cuda.is_available():
        rows += gpu_rows(names)
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    report = {"device": device_name(), "versions": versions, "rows": rows}
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
