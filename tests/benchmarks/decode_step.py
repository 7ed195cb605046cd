"""Times decode steps of a whole model from packed caches: ``python -m tests.benchmarks.decode_step --json``.

Llama-3.1-8B's geometry with random weights in bfloat16. Every step is a CUDA graph, also the one it is
compared with: the same model over keys and values in full precision in fixed buffers, attended to by
the fastest of torch's fused attentions (cuDNN or flash). The ceiling is what the bytes allow: weights and
cache, read at the copy bandwidth of the same run.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, Cache, LlamaConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from kernels.append.op import append
from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.cache import QuantizedKVCache, build_cache
from kvtuner_core.runtime.decoding import DecodeMode, Decoder
from kvtuner_core.runtime.in_place.attention import install
from tests.benchmarks.decode_attention import copy_bandwidth

PAIRS = ("K8V8", "K8V4", "K4V4", "K4V2", "K2V2")
MIXED = ("K8V8", "K4V4", "K4V2", "K2V2")
SCHEMES = {"per-token": QuantScheme.per_token(), "kivi": QuantScheme.kivi()}
SHAPES = ((8, 32768), (32, 8192), (1, 131072), (1, 4096), (64, 4096), (8, 4096), (1, 32768))
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
STEPS = 16
PROMPT = 64
CHUNK = 2048


class FixedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values in full precision in a buffer of exactly one length, whose last token each step writes anew."""

    is_compileable = False
    is_sliding = False

    def __init__(self, batch: int, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length
        shape = (batch, LLAMA["num_key_value_heads"], length, LLAMA["head_dim"])
        self.keys, self.values = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the last token; all of them."""
        self.keys[:, :, -1:], self.values[:, :, -1:] = key_states, value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens before the step."""
        return self.length - 1

    def get_max_length(self) -> int:
        """The only length there is."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that a step reads."""
        return self.length - 1 + query_length, 0


def main() -> None:
    """Measure and print; ``--json`` prints the whole result as JSON, ``--only`` one part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("steps", "largest", "others"), action="append")
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
        result |= steps(model, copy=result["copy_gb_per_s"])
    if "others" in parts:
        from tests.benchmarks.other_caches import others

        result["others"] = others(model)
    if "largest" in parts:
        result["largest"] = [largest(model, pair) for pair in ("bf16", "K4V4", "K4V2", "K2V2")]
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else readable(result))


def readable(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{result['device']}, {result['versions']}, copy {result['copy_gb_per_s']:.0f} GB/s"]
    for part in ("rows", "mixed", "append", "others", "largest"):
        lines += [part, *("  " + ", ".join(f"{k} {v}" for k, v in row.items()) for row in result.get(part, []))]
    return "\n".join(lines) + "\n"


def warm() -> None:
    """Compile the kernels of all pairs side by side, into Triton's cache on disk."""
    command = [sys.executable, "-m", "tests.benchmarks.decode_step", "--compile"]
    started = [subprocess.Popen([*command, pair, scheme]) for pair in (*PAIRS, "K16V16") for scheme in SCHEMES]
    if any([process.wait() for process in started]):
        sys.exit("The kernels could not be compiled; see above.")


def compile_kernels(pair: str, scheme: str) -> None:
    """Run a small model of the same heads once."""
    model = build({**LLAMA, "vocab_size": 256, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1})
    for batch in (1, 8):
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


def steps(model: PreTrainedModel, *, copy: float) -> dict[str, Any]:
    """Every pair and scheme at every shape, mixed policies, and the share of appending."""
    rows, mixes, appends = [], [], []
    for batch, length in SHAPES:
        bf16 = [full_precision(model, batch, length)]
        here = []
        for scheme in SCHEMES:
            for pair in PAIRS:
                policy = uniform(model, pair, scheme)
                row = packed(model, policy, batch, length)
                here.append(row | {"pair": pair, "scheme": scheme})
                if pair in ("K8V8", "K2V2"):
                    share = append_share(model, policy, batch=batch, length=length, step_ms=row["ms"])
                    appends.append({"pair": pair, "scheme": scheme, "batch": batch, "length": length, **share})
            alone = [row["ms"] for row in here if row["scheme"] == scheme and row["pair"] in MIXED]
            together = packed(model, mixed(model, scheme), batch, length)["ms"]
            overhead = round(together / statistics.mean(alone) - 1, 4)
            mixes.append({"batch": batch, "length": length, "scheme": scheme, "ms": together, "overhead": overhead})
        bf16.append(full_precision(model, batch, length))
        rows += [{"batch": batch, "length": length, **compared(model, row, min(bf16), copy=copy)} for row in here]
        # Told as they come: a run that is cut short has measured what it has measured.
        sys.stderr.write(json.dumps({"rows": rows[-len(here) :], "mixed": mixes[-2:], "append": appends[-4:]}) + "\n")
    return {"rows": rows, "mixed": mixes, "append": appends}


def compared(model: PreTrainedModel, row: dict[str, Any], bf16: float, *, copy: float) -> dict[str, Any]:
    """A row with its ratios to full precision and to what the bytes allow."""
    weights = weight_bytes(model)
    speedup, ceiling = bf16 / row["ms"], (weights + row.pop("full_bytes")) / (weights + row["bytes"])
    return row | {
        "bandwidth_fraction": round((weights + row["bytes"]) / (row["ms"] * 1e6) / copy, 3),
        "bf16_ms": bf16,
        "speedup": round(speedup, 3),
        "ceiling": round(ceiling, 3),
        "of_ceiling": round(speedup / ceiling, 3),
    }


def packed(model: PreTrainedModel, policy: KVPolicy, batch: int, length: int) -> dict[str, Any]:
    """Milliseconds of a captured step, and bytes: held (equal to the memory model), reserved, and at the peak."""
    torch.cuda.reset_peak_memory_stats()
    with decoding(model, policy, batch, length) as (cache, decoder):
        predicted = cache_bytes(policy, cache.geometry, tokens=length, batch=batch)
        full = cache_bytes(uniform(model, "K16V16", "per-token"), cache.geometry, tokens=length, batch=batch)
        held = cache.measured_bytes()
        if held != predicted:
            sys.exit(f"The cache holds {held} bytes where the memory model says {predicted}.")
        ids = tokens(batch)
        ms = timed(lambda: decoder.step(ids))
        if decoder.mode is not DecodeMode.GRAPH:
            sys.exit(f"The step was not captured: {decoder.why_eager}.")
        peak = torch.cuda.max_memory_allocated()
        reserved = cache.reserved_bytes()
        row = {"ms": round(ms, 4), "bytes": held, "reserved_bytes": reserved, "peak_bytes": peak, "full_bytes": full}
        return row


def timed(step: Callable[[], object], *, count: int = STEPS) -> float:
    """Median milliseconds of a step, each between two events, warm."""
    for _ in range(3):
        step()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for start, end in events:
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def full_precision(model: PreTrainedModel, batch: int, length: int) -> float:
    """Milliseconds of a captured step in full precision, with the faster of cuDNN and flash attention."""
    cache = Cache(layers=[FixedLayer(batch, length) for _ in range(model.config.num_hidden_layers)])
    ids, position = tokens(batch), torch.full((batch, 1), length - 1, device="cuda")

    def step() -> Tensor:
        output = model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits
        return logits

    found = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel([backend]):
            found.append(timed(captured(step).replay))
    return round(min(found), 4)


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def append_share(
    model: PreTrainedModel, policy: KVPolicy, *, batch: int, length: int, step_ms: float
) -> dict[str, float]:
    """Milliseconds of appending a token to all layers, the mean over a flush of the window, and its share of a step."""
    with decoding(model, policy, batch, length) as (cache, _):
        fresh = torch.randn(batch, 8, 1, 128, device="cuda", dtype=torch.bfloat16)
        layer = cache.layers[0]
        unit = layer.extent.unit
        found = []
        for ahead in (0, unit) if unit > 1 else (1,):
            numbers = (layer.tokens, layer.packed, layer.packed + ahead, layer.tokens + 1)
            progress = torch.tensor(numbers, dtype=torch.int32, device="cuda")

            def step(progress: Tensor = progress) -> None:
                for one in cache.layers:
                    store = one.stores[0]
                    append(store.keys[0], store.values[0], recent=store.recent, new=(fresh, fresh), progress=progress)

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
            ms = full_precision(model, batch, length) if pair == "bf16" else packed(model, policy, batch, length)["ms"]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch -= max(1, batch // 40)
            continue
        break
    return {"pair": pair, "length": length, "batch": batch, "ms": ms, "tokens_per_second": round(batch / ms * 1e3, 1)}


if __name__ == "__main__":
    main()
