"""Times attention over packed keys and values against full precision: ``python -m tests.benchmarks.decode_attention``.

One decode step of one layer, 32 query heads, 8 KV heads, head_dim 128 (Llama-3.1-8B). Each row is
checked against float64 on a small store of its kind first. Times are medians of CUDA-graph replays,
interleaved over all variants of a shape; a graph walks over as many stores as exceed the L2 cache.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.decode_attention.op import (
    PackedSide,
    Recent,
    Visible,
    decode_attention,
    dequantize,
    pack_keys,
    pack_values,
)
from kernels.decode_attention.reference import attend
from tests.benchmarks.timing import shape

PAIRS = ((8, 8), (8, 4), (4, 4), (4, 2), (2, 2))
SCHEMES = ("per-token", "per-channel keys")
SHAPES = ((1, 4096), (1, 32768), (1, 131072), (8, 4096), (8, 32768), (32, 8192), (64, 4096), (64, 16384))
HEADS, KV_HEADS, DIM = 32, 8, 128
ROTATED_BYTES = 512 << 20
REPLAYS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result; times in milliseconds, bytes of the packed store a step must read."""

    pair: str
    scheme: str
    batch: int
    length: int
    ms: float
    bytes: int
    bandwidth_fraction: float
    bf16_ms: float
    bf16_backend: str
    speedup: float
    perfect_speedup: float


Step = Callable[[int], None]


def main() -> None:
    """Check, time and print; ``--json`` prints the whole result as JSON, ``--quick`` and ``--shape`` choose shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="8 x 32k, 32 x 8k and 64 x 16k only")
    parser.add_argument("--shape", type=shape, action="append", help="as 8x32768; all of SHAPES by default")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU; torch sees none.")
    torch.manual_seed(0)
    check()
    copy = copy_bandwidth()
    rows: list[Row] = []
    for batch, length in options.shape or SHAPES:
        if options.quick and not options.shape and batch * length < 1 << 18:
            continue
        rows += measure(batch, length, copy)
        torch.cuda.empty_cache()
    result = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda},
        "copy_gb_per_s": round(copy, 1),
        "rows": [asdict(row) for row in rows],
    }
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(f"{result['device']}, {result['versions']}, copy {copy:.0f} GB/s\n")
    for row in rows:
        sys.stdout.write(
            f"{row.batch:3d} x {row.length:6d}  {row.scheme:16s} {row.pair}  {row.ms:7.4f} ms  "
            f"{row.bandwidth_fraction:4.0%} of copy  {row.speedup:5.2f}x {row.bf16_backend} ({row.bf16_ms:.4f} ms)\n"
        )


def check() -> None:
    """Stop unless every pair and scheme is within 4e-3 of float64 (bfloat16 output), NaN included."""
    for k_bits, v_bits in PAIRS:
        for scheme in SCHEMES:
            keys, values, visible = store(3, 1056, k_bits, v_bits, scheme)
            query = torch.randn(3, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
            out = decode_attention(query, keys, values=values, visible=visible, implementation="triton")
            k, v = dequantize(keys, keys=True).double(), dequantize(values, keys=False).double()
            mask = (torch.arange(k.shape[2], device="cuda") < visible.last[:, None])[:, None]
            expected = attend(query, k, v, mask, DIM**-0.5)
            error = ((out.double() - expected).norm() / expected.norm()).item()
            if not error < 4e-3:
                sys.exit(f"K{k_bits}V{v_bits} {scheme}: relative error {error:.1e} against float64, more than 4e-3.")


def store(batch: int, length: int, k_bits: int, v_bits: int, scheme: str) -> tuple[PackedSide, PackedSide, Visible]:
    """A packed store of random codes; scales as of unit-variance keys and values."""
    sides = []
    for bits, channel in ((k_bits, scheme == SCHEMES[1]), (v_bits, False)):
        codes = torch.randint(0, 2**bits, (batch, KV_HEADS, length, DIM), dtype=torch.uint8, device="cuda")
        shape = (batch, KV_HEADS, length // 32, DIM) if channel else (batch, KV_HEADS, length)
        scale = (3 + torch.rand(shape, device="cuda")) / (2**bits - 1)
        offset = -1.5 - torch.rand(shape, device="cuda")
        pack = pack_values if sides else pack_keys
        sides.append(pack(codes, scale, offset, bits=bits))
    visible = Visible(
        first=torch.zeros(batch, 1, dtype=torch.int32, device="cuda"),
        last=torch.full((batch,), length, dtype=torch.int32, device="cuda"),
    )
    return sides[0], sides[1], visible


def random_words(batch: int, length: int, bits: int, *, channel: bool) -> PackedSide:
    """Like a side of `store`, of random words: quick to make at any size."""
    blocks = length // 64
    words = torch.randint(
        -(2**31), 2**31 - 1, (batch, KV_HEADS, blocks, 2 * DIM * bits), dtype=torch.int32, device="cuda"
    )
    scales = torch.rand(batch, KV_HEADS, blocks, 4 * DIM if channel else 128, device="cuda").to(torch.float16)
    granularity = "channel" if channel else "token"
    return PackedSide(words=words, scales=scales, bits=bits, granularity=granularity, head_dim=DIM)


def copy_bandwidth() -> float:
    """Device-to-device copy in GB/s, bytes read plus bytes written."""
    source = torch.randint(0, 255, (4 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.numel() / statistics.median(times) / 1e6


def measure(batch: int, length: int, copy: float) -> list[Row]:
    """All pairs and schemes of one shape, and the bf16 baselines, in one interleaved run."""
    exact_bytes = 2 * 2 * batch * KV_HEADS * length * DIM
    steps: dict[tuple[str, str], tuple[Step, int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for scheme in SCHEMES:
        for k_bits, v_bits in PAIRS:
            name = (f"K{k_bits}V{v_bits}", scheme)
            sizes[name], step, copies = _packed_step(batch, length, k_bits, v_bits, scheme)
            steps[name] = (step, copies)
    copies = _copies(exact_bytes)
    query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    shape = (batch, KV_HEADS, length, DIM)
    pairs = [
        (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16),
            torch.randn(shape, device="cuda", dtype=torch.bfloat16),
        )
        for _ in range(copies)
    ]
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        steps[backend.name, ""] = (_exact_step(query, pairs, backend), copies)
    times = interleaved(steps)
    baseline = min(
        (b.name for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)), key=lambda b: times[b, ""]
    )
    bf16 = times[baseline, ""]
    perfect = exact_bytes / copy / 1e6
    return [
        Row(
            pair=name[0],
            scheme=name[1],
            batch=batch,
            length=length,
            ms=times[name],
            bytes=size,
            bandwidth_fraction=size / times[name] / 1e6 / copy,
            bf16_ms=bf16,
            bf16_backend=baseline.split("_")[0].lower(),
            speedup=bf16 / times[name],
            perfect_speedup=perfect / times[name],
        )
        for name, size in sizes.items()
    ]


def _packed_step(batch: int, length: int, k_bits: int, v_bits: int, scheme: str) -> tuple[int, Step, int]:
    channel = scheme == SCHEMES[1]
    key_scales = 4 * DIM * length // 32 if channel else 4 * length
    size = batch * KV_HEADS * (length * DIM * (k_bits + v_bits) // 8 + key_scales + 4 * length)
    copies = _copies(size)
    stores = [
        (random_words(batch, length, k_bits, channel=channel), random_words(batch, length, v_bits, channel=False))
        for _ in range(copies)
    ]
    query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    visible = Visible(
        first=torch.zeros(batch, 1, dtype=torch.int32, device="cuda"),
        last=torch.full((batch,), length, dtype=torch.int32, device="cuda"),
    )
    new = torch.randn(batch, KV_HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(batch, 1, 1, dtype=torch.bool, device="cuda")
    recent = Recent(keys=new, values=new, mask=mask)

    def step(i: int) -> None:
        keys, values = stores[i]
        decode_attention(query, keys, values=values, visible=visible, recent=recent, implementation="triton")

    return size, step, copies


def _exact_step(query: Tensor, pairs: list[tuple[Tensor, Tensor]], backend: SDPBackend) -> Step:
    def step(i: int) -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(query, *pairs[i], enable_gqa=True)

    return step


def _copies(size: int) -> int:
    return max(1, min(64, -(-ROTATED_BYTES // size)))


def interleaved(steps: dict[tuple[str, str], tuple[Step, int]]) -> dict[tuple[str, str], float]:
    """Median milliseconds of one call of each step, from graph replays taken in turns."""
    graphs = {}
    for name, (step, copies) in steps.items():
        step(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(copies):
                step(i)
        graphs[name] = (graph, copies)
        graph.replay()
    times: dict[tuple[str, str], list[float]] = {name: [] for name in graphs}
    for _ in range(REPLAYS):
        for name, (graph, copies) in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / copies)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
