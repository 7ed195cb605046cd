"""Times steps on a GPU, alone or in turn with others, and captures them as CUDA graphs."""

import statistics
from collections.abc import Callable

import torch

from kvtuner_core.runtime.capturing import undone_where_it_fails

STEPS = 12
"""Steps that a median is of."""


def shape(text: str) -> tuple[int, int]:
    """Batch and length of ``8x32768``."""
    batch, length = text.split("x")
    return int(batch), int(length)


def timed(step: Callable[[], object], *, count: int = STEPS) -> float:
    """Median milliseconds of a step, each between two events, warm."""
    return timed_in_turn(step, count=count)[0]


def timed_in_turn(*steps: Callable[[], object], count: int = STEPS) -> list[float]:
    """Median milliseconds of each of some steps, which take turns; each between two events, warm."""
    for _ in range(3):
        for step in steps:
            step()
    found: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in steps]
    for _ in range(count):
        for step, events in zip(steps, found, strict=True):
            events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            events[-1][0].record()
            step()
            events[-1][1].record()
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in events) for events in found]


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    device = torch.device("cuda", torch.cuda.current_device())
    with undone_where_it_fails(pool, device), torch.cuda.graph(graph, pool=pool):
        step()
    return graph
