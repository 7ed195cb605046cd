"""Times appending, exact attention, channel groups and sides at 16 bits on a GPU: ``python -m tests.kernels.timings``.

8 KV heads, 32 query heads, head_dim 128, bfloat16; medians of CUDA-graph replays. ``--only exact`` leaves the rest out.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.append.op import RecentStore, append, empty_side
from kernels.decode_attention.op import PackedSide, Visible, decode_attention
from kernels.exact_attention.op import exact_attention

HEADS, KV_HEADS, DIM = 32, 8, 128


GROUPED = (
    ((4, 4), False, (None, None)),
    ((4, 4), False, (None, 32)),
    ((2, 2), False, (None, 32)),
    ((2, 2), False, (32, 32)),
    ((4, 2), True, (None, 64)),
    ((4, 2), True, (None, 32)),
    ((2, 2), True, (None, None)),
    ((2, 2), True, (None, 32)),
)
ONE_SIDED = (
    ((4, 16), False, (None, None)),
    ((16, 4), False, (None, None)),
    ((4, 16), True, (None, None)),
    ((2, 16), True, (None, None)),
    ((16, 4), False, (None, 32)),
    ((16, 2), False, (None, 32)),
)
"""Bits of keys and values, whether keys are per channel, channels that share a scale of keys and of values."""


def main() -> None:
    parts = {"append": appends, "exact": exact_layers, "groups": grouped}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=parts, action="append")
    chosen = parser.parse_args().only or parts
    if not torch.cuda.is_available():
        sys.exit("These timings need a CUDA GPU; torch sees none.")
    for part in chosen:
        parts[part]()


def appends() -> None:
    for batch in (1, 8, 64):
        for bits, channel in (((4, 4), False), ((2, 2), False), ((4, 2), True)):
            time_step(batch, bits, channel=channel)
    for bits, channel in (((8, 8), False), ((4, 4), False), ((2, 2), True)):
        time_prefill(131072, bits, channel=channel)


def exact_layers() -> None:
    for batch, length in ((8, 32768), (32, 8192), (1, 32768), (1, 4096)):
        time_exact(batch, length)
        for bits, channel, groups in ONE_SIDED:
            time_groups(batch, length, bits, channel=channel, groups=groups)


def grouped() -> None:
    for bits, channel, groups in GROUPED:
        time_groups(8, 32768, bits, channel=channel, groups=groups)


def microseconds(step: Callable[[int], object], count: int, replays: int = 15) -> float:
    """Median time of one of ``count`` calls captured in a graph."""
    for i in range(min(count, 3)):
        step(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            step(i)
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / count * 1e3)
    return statistics.median(times)


def sides(
    batch: int,
    blocks: int,
    bits: tuple[int, int],
    *,
    channel: bool,
    groups: tuple[int | None, int | None] = (None, None),
) -> tuple[PackedSide, PackedSide]:
    made = [
        empty_side(
            batch=batch,
            heads=KV_HEADS,
            blocks=blocks,
            head_dim=DIM,
            bits=width,
            group_size=group,
            channel=per_channel,
            device="cuda",
            dtype=torch.bfloat16 if width == 16 else torch.int32,
        )
        for width, group, per_channel in zip(bits, groups, (channel, False), strict=True)
    ]
    return made[0], made[1]


def recent_store(batch: int) -> RecentStore:
    held = torch.zeros(2, batch, KV_HEADS, 172, DIM, dtype=torch.bfloat16, device="cuda")
    return RecentStore(keys=held[0], values=held[1], sinks=4)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def time_step(batch: int, bits: tuple[int, int], *, channel: bool) -> None:
    stores = [(*sides(batch, 64, bits, channel=channel), recent_store(batch)) for _ in range(8)]
    new = random(batch, 1, KV_HEADS, DIM).transpose(1, 2)
    for due in (0, 32) if channel else (1, 32):
        numbers = torch.tensor([2000, 1824, 1824 + due, 0], dtype=torch.int32, device="cuda")

        def step(i: int, numbers: Tensor = numbers) -> None:
            k, v, recent = stores[i % 8]
            append(k, v, recent=recent, new=(new, new), progress=numbers)

        name = f"append {batch} x 1, K{bits[0]}V{bits[1]}{' per channel' if channel else ''}, {due} due"
        sys.stdout.write(f"{name}: {microseconds(step, 64):.2f} us\n")


def time_prefill(length: int, bits: tuple[int, int], *, channel: bool) -> None:
    k, v = sides(1, length // 64, bits, channel=channel)
    recent = recent_store(1)
    new = random(1, length, KV_HEADS, DIM).transpose(1, 2)
    numbers = torch.tensor([0, 0, length - 160, 0], dtype=torch.int32, device="cuda")
    time = microseconds(lambda _: append(k, v, recent=recent, new=(new, new), progress=numbers), 2, 5)
    sys.stdout.write(f"append 1 x {length}, K{bits[0]}V{bits[1]}{' per channel' if channel else ''}: {time:.0f} us\n")


def time_exact(batch: int, length: int) -> None:
    query = random(batch, HEADS, 1, DIM)
    size = 4 * batch * KV_HEADS * length * DIM
    count = max(1, min(8, (512 << 20) // size))
    stores = [(random(batch, KV_HEADS, length, DIM), random(batch, KV_HEADS, length, DIM)) for _ in range(count)]
    first = torch.zeros(batch, 1, dtype=torch.int32, device="cuda")
    last = torch.full_like(first, length)

    def cudnn(i: int) -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            scaled_dot_product_attention(query, *stores[i % count], enable_gqa=True)

    def ours(i: int) -> None:
        keys, values = stores[i % count]
        exact_attention(query, keys, values=values, first=first, last=last)

    time = microseconds(ours, count)
    sys.stdout.write(
        f"exact {batch} x {length}: {time:.1f} us ({size / time / 1e3:.0f} GB/s), "
        f"cuDNN {microseconds(cudnn, count):.1f} us\n"
    )


def filled(words: Tensor) -> Tensor:
    return torch.randn_like(words) if words.is_floating_point() else torch.randint_like(words, -(2**31), 2**31 - 1)


def time_groups(
    batch: int, length: int, bits: tuple[int, int], *, channel: bool, groups: tuple[int | None, int | None]
) -> None:
    keys, values = (
        replace(side, words=filled(side.words), scales=torch.rand_like(side.scales))
        for side in sides(batch, length // 64, bits, channel=channel, groups=groups)
    )
    query = random(batch, HEADS, 1, DIM)
    last = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    visible = Visible(first=torch.zeros(batch, 1, dtype=torch.int32, device="cuda"), last=last)
    time = microseconds(lambda _: decode_attention(query, keys, values=values, visible=visible), 4)
    size = sum(x.nbytes for side in (keys, values) for x in (side.words, side.scales))
    sys.stdout.write(
        f"attention {batch} x {length}, K{bits[0]}V{bits[1]}{' per channel' if channel else ''}, groups {groups}: "
        f"{time:.1f} us ({size / time / 1e3:.0f} GB/s)\n"
    )


if __name__ == "__main__":
    main()
