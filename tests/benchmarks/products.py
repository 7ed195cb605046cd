"""Times products of a CPU's matrices by the libraries that come with torch: ``python -m tests.benchmarks.products``.

GFLOP/s of ``states @ weight.T`` by MKL and oneDNN in float32, and in bfloat16 as torch makes it, at shapes of the
bundled model: medians over calls that take turns among weights, as layers do.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kvtuner_core.runtime.products import hastens

ROWS = (24, 144, 512, 2048)
SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 2048))
"""Columns in and out; the last is a chunk of the head."""

LAYERS = 8
CALLS = 24


def main() -> None:
    """Measure and print one JSON document."""
    torch.set_grad_enabled(False)
    rows = [measured(rows, inner, columns) for inner, columns in SHAPES for rows in ROWS]
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "one_dnn_is_taken": hastens()}
    sys.stdout.write(json.dumps(result | {"gflop_per_s": rows}, indent=1) + "\n")


def measured(rows: int, inner: int, columns: int) -> dict[str, int]:
    """One shape by all of them."""
    states = torch.randn(rows, inner)
    weights = [torch.randn(columns, inner) for _ in range(LAYERS)]
    small = [weight.bfloat16() for weight in weights]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mkl": lambda weight: functional.linear(states, weight),
        "one_dnn": lambda weight: torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], ""),
    }
    work = 2e-9 * rows * inner * columns
    found = {name: round(work / seconds(way, weights)) for name, way in ways.items()}
    half = states.bfloat16()
    found["bfloat16"] = round(work / seconds(lambda weight: functional.linear(half, weight), small))
    return {"rows": rows, "in": inner, "out": columns, **found}


def seconds(way: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Median of some calls, each with the next weight."""
    turns = itertools.cycle(weights)
    times = []
    for _ in range(CALLS):
        weight = next(turns)
        began = time.perf_counter()
        way(weight)
        times.append(time.perf_counter() - began)
    return statistics.median(times[LAYERS:])


if __name__ == "__main__":
    main()
