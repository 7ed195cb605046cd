"""Times decode steps of a whole model from packed caches: ``python -m tests.benchmarks.decode_step --json``.

Llama-3.1-8B's geometry with random weights in bfloat16. Every step is a CUDA graph of the same fused operations,
also the one it is compared with, whose keys and values lie in full precision in fixed buffers and are
attended to by the fastest of torch's fused attentions (cuDNN or flash); the two take turns. The ceiling is
what the bytes allow: those of weights and cache in full precision over those of weights and packed cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
import triton
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from kernels.append.op import append
from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.cache import QuantizedKVCache, build_cache
from kvtuner_core.runtime.decoding import DecodeMode, Decoder
from kvtuner_core.runtime.in_place.attention import install
from tests.benchmarks.decode_attention import copy_bandwidth
from tests.benchmarks.full_precision import FullPrecision
from tests.benchmarks.timing import STEPS, captured, shape, timed, timed_in_turn

PAIRS = ("K8V8", "K8V4", "K4V4", "K4V2", "K2V2")
MIXED = ("K8V8", "K4V4", "K4V2", "K2V2")
SCHEMES = {"per-token": QuantScheme.per_token(), "kivi": QuantScheme.kivi()}
SHAPES = ((8, 32768), (32, 8192), (64, 4096), (1, 131072), (1, 4096), (8, 4096), (1, 32768))
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072 + 4096,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
PROMPT = 64
CHUNK = 2048
FUSED = "fused kernels and layers, CUDA graph"


def main() -> None:
    """Measure and print; ``--json`` prints the whole result as JSON, ``--only`` one part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("steps", "largest", "others"), action="append")
    parser.add_argument("--shape", type=shape, action="append", help="of the steps, as 8x32768; all by default")
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU; torch sees none.")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if options.compile:
        compile_kernels(*options.compile)
        return
    parts = options.only or ["steps", "largest", "others"]
    warm()
    model = build(LLAMA)
    # Under capture, transformers would make a mask that hides nothing, and no fused attention takes one.
    install(model)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "transformers": transformers.__version__,
            "cuda": torch.version.cuda,
        },
        "copy_gb_per_s": round(copy_bandwidth(), 1),
        "weight_bytes": weight_bytes(model),
    }
    if "steps" in parts:
        result |= steps(model, options.shape or SHAPES, copy=result["copy_gb_per_s"])
    if "others" in parts:
        from tests.benchmarks.other_caches import others

        result["others"] = others(model)
    if "largest" in parts:
        result["largest"] = [largest(model, pair) for pair in ("bf16", "K4V4", "K4V2", "K2V2")]
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else readable(result))


def readable(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{result['device']}, {result['versions']}, copy {result['copy_gb_per_s']:.0f} GB/s"]
    for part in ("rows", "full_precision", "mixed", "append", "others", "largest"):
        lines += [part, *("  " + ", ".join(f"{k} {v}" for k, v in row.items()) for row in result.get(part, []))]
    return "\n".join(lines) + "\n"


def warm() -> None:
    """Compile the kernels of all pairs side by side, into Triton's cache on disk."""
    command = [sys.executable, "-m", "tests.benchmarks.decode_step", "--compile"]
    started = [subprocess.Popen([*command, pair, scheme]) for pair in (*PAIRS, "K16V16") for scheme in SCHEMES]
    if any([process.wait() for process in started]):
        sys.exit("The kernels could not be compiled; see above.")


def compile_kernels(pair: str, scheme: str) -> None:
    """Run one layer of the model once, over a short history, with all batches once."""
    model = build({**LLAMA, "vocab_size": 32768, "num_hidden_layers": 1})
    for batch in (1, 8, 32, 64) if pair == "K16V16" else (1, 8):
        with decoding(model, uniform(model, pair, scheme), batch, 512) as (_, decoder):
            decoder.step(tokens(batch))
            if decoder.mode is not DecodeMode.GRAPH:
                sys.exit(str(decoder.why_eager))


def build(geometry: dict[str, Any]) -> PreTrainedModel:
    """A Llama with random weights on the GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**geometry))
    finally:
        torch.set_default_dtype(before)
    return model.eval()  # type: ignore[no-untyped-call]


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that a step reads: all but the embedding, of which it takes a row a sequence."""
    whole = sum(parameter.nbytes for parameter in model.parameters())
    return whole - model.get_input_embeddings().weight.nbytes


def uniform(model: PreTrainedModel, pair: str, scheme: str) -> KVPolicy:
    """The same pair in all layers."""
    return KVPolicy.uniform(pair, layers=model.config.num_hidden_layers, scheme=SCHEMES[scheme])


def mixed(model: PreTrainedModel, scheme: str) -> KVPolicy:
    """The pairs of `MIXED` in turn."""
    layers = (LayerPrecision(pair=PrecisionPair.parse(MIXED[i % 4])) for i in range(model.config.num_hidden_layers))
    return KVPolicy(scheme=SCHEMES[scheme], layers=tuple(layers))


def tokens(batch: int) -> Tensor:
    """One token of each sequence."""
    return torch.randint(0, 200, (batch, 1), device="cuda")


@contextmanager
def decoding(
    model: PreTrainedModel, policy: KVPolicy, batch: int, length: int, *, capture: bool = True
) -> Iterator[tuple[QuantizedKVCache, Decoder]]:
    """A cache that holds ``length`` tokens of random keys and values, and its decoder."""
    torch.cuda.empty_cache()
    cache = build_cache(policy, model, max_tokens=length + 4 * STEPS)
    decoder = Decoder(model, cache, capture=capture)
    decoder.prefill(torch.randint(0, 200, (batch, PROMPT), device="cuda"))
    shape = (batch, LLAMA["num_key_value_heads"], CHUNK, LLAMA["head_dim"])
    fresh = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    for layer in cache.layers:
        for begin in range(PROMPT, length, CHUNK):
            part = fresh[:, :, : min(CHUNK, length - begin)]
            layer.extend(part, part)
    del fresh
    try:
        yield cache, decoder
    finally:
        decoder.close()
        del cache, decoder
        torch.cuda.empty_cache()


def steps(model: PreTrainedModel, shapes: Sequence[tuple[int, int]], *, copy: float) -> dict[str, Any]:
    """Every pair and scheme at every shape, mixed policies, and the share of appending."""
    rows, mixes, appends, plain = [], [], [], []
    for batch, length in shapes:
        before = started()
        beside = FullPrecision(model, batch, length)
        full_peak = peak_bytes(model, before)
        here = []
        for scheme in SCHEMES:
            for pair in PAIRS:
                row, share = packed(model, uniform(model, pair, scheme), batch, length, beside=beside.replay)
                here.append(row | {"pair": pair, "scheme": scheme})
                if pair in ("K8V8", "K2V2"):
                    appends.append({"pair": pair, "scheme": scheme, "batch": batch, "length": length, **share})
            alone = [row["ms"] for row in here if row["scheme"] == scheme and row["pair"] in MIXED]
            row, _ = packed(model, mixed(model, scheme), batch, length, beside=beside.replay)
            overhead = round(row["ms"] / statistics.mean(alone) - 1, 4)
            mixes.append({"batch": batch, "length": length, "scheme": scheme, "ms": row["ms"], "overhead": overhead})
        plain.append({"batch": batch, "length": length, **beside.times, "peak_bytes": full_peak})
        del beside
        torch.cuda.empty_cache()
        rows += [{"batch": batch, "length": length, **compared(model, row, copy=copy)} for row in here]
        # Told as they come: a run that is cut short has measured what it has measured.
        told = {"rows": rows[-len(here) :], "mixed": mixes[-2:], "append": appends[-4:], "full_precision": plain[-1:]}
        sys.stderr.write(json.dumps(told) + "\n")
    return {"rows": rows, "mixed": mixes, "append": appends, "full_precision": plain}


def compared(model: PreTrainedModel, row: dict[str, Any], *, copy: float) -> dict[str, Any]:
    """A row with its ratios to full precision and to what the bytes allow."""
    weights = weight_bytes(model)
    speedup, ceiling = row["bf16_ms"] / row["ms"], (weights + row.pop("full_bytes")) / (weights + row["bytes"])
    return row | {
        "bandwidth_fraction": round((weights + row["bytes"]) / (row["ms"] * 1e6) / copy, 3),
        "speedup": round(speedup, 3),
        "ceiling": round(ceiling, 3),
        "of_ceiling": round(speedup / ceiling, 3),
    }


def packed(
    model: PreTrainedModel, policy: KVPolicy, batch: int, length: int, *, beside: Callable[[], object] | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Milliseconds of a captured step, and bytes: held (equal to the memory model), reserved, and at the peak.

    ``beside`` is another step, timed in turn with this one. Also the share of appending.
    """
    before = started()
    with decoding(model, policy, batch, length) as (cache, decoder):
        predicted = cache_bytes(policy, cache.geometry, tokens=length, batch=batch)
        full = cache_bytes(uniform(model, "K16V16", "per-token"), cache.geometry, tokens=length, batch=batch)
        held = cache.measured_bytes()
        if held != predicted:
            sys.exit(f"The cache holds {held} bytes where the memory model says {predicted}.")
        ids = tokens(batch)
        ms, *others_ms = timed_in_turn(lambda: decoder.step(ids), *([beside] if beside else []))
        if "out of memory" in str(decoder.why_eager):
            raise torch.OutOfMemoryError(decoder.why_eager)
        if decoder.mode is not DecodeMode.GRAPH or decoder.path != FUSED:
            sys.exit(f"The step was not captured or not fused: {decoder.path}.")
        peak = peak_bytes(model, before)
        reserved = cache.reserved_bytes()
        row = {"ms": round(ms, 4), "bytes": held, "reserved_bytes": reserved, "peak_bytes": peak, "full_bytes": full}
        if beside:
            row["bf16_ms"] = round(others_ms[0], 4)
        return row, append_share(cache, step_ms=ms)


def started() -> int:
    """Bytes allocated now, from where on the peak counts."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(model: PreTrainedModel, before: int) -> int:
    """The peak since `started`, weights included; the rest of ``before`` is the step that this one is compared with."""
    return torch.cuda.max_memory_allocated() - before + sum(x.nbytes for x in model.parameters())


def append_share(cache: QuantizedKVCache, *, step_ms: float) -> dict[str, float]:
    """Milliseconds of appending a token to all layers, the mean over a flush of the window, and its share of a step."""
    layer = cache.layers[0]
    batch = layer.stores[0].shape.batch
    fresh = torch.randn(batch, 8, 1, 128, device="cuda", dtype=torch.bfloat16)
    unit = layer.extent.unit
    found = []
    for ahead in (0, unit) if unit > 1 else (1,):
        numbers = (layer.tokens, layer.packed, layer.packed + ahead, layer.tokens + 1)
        progress = torch.tensor(numbers, dtype=torch.int32, device="cuda")

        def step(progress: Tensor = progress) -> None:
            for one in cache.layers:
                store = one.stores[0]
                sides, new = (store.keys[0], store.values[0]), (fresh, fresh)
                append(*sides, recent=store.recent, new=new, progress=progress, settled=True)

        found.append(timed(captured(step).replay))
    ms = found[0] if unit == 1 else (found[0] * (unit - 1) + found[1]) / unit
    return {"ms": round(ms, 4), "share_of_step": round(ms / step_ms, 4)}


def largest(model: PreTrainedModel, pair: str, *, length: int = 32768) -> dict[str, Any]:
    """The largest batch that fits, by trying, and the tokens a second there."""
    policy = uniform(model, "K16V16" if pair == "bf16" else pair, "per-token")
    geometry = build_cache(policy, model).geometry
    one = cache_bytes(policy, geometry, tokens=length + 4 * STEPS)
    torch.cuda.empty_cache()
    batch = torch.cuda.mem_get_info()[0] // one
    while batch:
        try:
            ms = best_ms(model, batch, length) if pair == "bf16" else packed(model, policy, batch, length)[0]["ms"]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch -= max(1, batch // 40)
            continue
        break
    return {"pair": pair, "length": length, "batch": batch, "ms": ms, "tokens_per_second": round(batch / ms * 1e3, 1)}


def best_ms(model: PreTrainedModel, batch: int, length: int) -> float:
    """Milliseconds of a captured step in full precision."""
    times = FullPrecision(model, batch, length).times
    return min(times["cudnn"], times["flash"])


if __name__ == "__main__":
    main()
