"""Times `generate()` through transformers' own caches and ours: ``python -m tests.benchmarks.other_caches --json``.

Llama-3.1-8B's geometry with random weights in bfloat16, one sequence, a prompt of 8k or 32k tokens, then
single tokens. Everybody is called from Python, through ``generate()``; ours also as a CUDA graph, by its
own decoder. All take turns. In the first turn every cache meets lengths of history that the process has not met
before (`first_ms`), as a user's text does: torch's attention through cuDNN makes a plan for each of them then. In the
others it meets the same lengths again, and `ms` is the middle one of their medians. The first tokens of a prompt are
left out, while torch still asks the driver for memory. transformers' `QuantizedCache` quantises its whole history
again every 128 tokens: a median over a prompt's tokens leaves that out, so it stands beside, as milliseconds shared out
to each of the 128. Needs ``optimum-quanto`` and ``hqq`` (which needs ``termcolor`` and ``einops``) beside what the
project needs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
import triton
from torch import Tensor
from transformers import Cache, DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel, QuantizedCache

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.cache import build_cache
from kvtuner_core.runtime.decoding import DecodeMode, Decoder

LENGTHS = (8192, 32768)
BACKENDS = {"quanto 4 bits": ("quanto", 0), "hqq 4 bits": ("hqq", 1)}
"""Backend of a `QuantizedCache`, and what it calls the axis of its groups: transformers' defaults."""

RESIDUAL = 128
STEPS, WARM, ROUNDS = 64, 16, 3
"""Tokens of a prompt, those left out at their beginning, and turns at lengths that are known."""

FAILURES = (RuntimeError, ValueError, ImportError, TypeError, AttributeError, OSError)


class Clock(LogitsProcessor):
    """Notes when each token's logits are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Wait for the device and look at the clock."""
        if scores.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return scores

    def median_ms(self) -> float:
        """Median milliseconds of a token, the prompt and the first ones left out."""
        gaps = [1e3 * (after - before) for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(gaps[WARM:])


def main() -> None:
    """Measure and print; ``--json`` prints the whole result as JSON."""
    from tests.benchmarks.decode_attention import copy_bandwidth
    from tests.benchmarks.decode_step import LLAMA, build

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU; torch sees none.")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions(),
        "copy_gb_per_s": round(copy_bandwidth(), 1),
    }
    result["others"] = others(build(LLAMA))
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else readable(result))


def versions() -> dict[str, str]:
    """Those that count, of quanto and HQQ, too, where they are there."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__}
    for name in ("optimum-quanto", "hqq"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"cuda": str(torch.version.cuda)}


def readable(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [", ".join(f"{name} {value}" for name, value in row.items()) for row in result["others"]]
    return "\n".join([f"{result['device']}, {result['versions']}", *lines]) + "\n"


def others(model: PreTrainedModel, lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    """A row per length and cache, with its two ratios: ours from Python and ours as a graph, to theirs."""
    rows: list[dict[str, Any]] = []
    names = ("DynamicCache", *BACKENDS, "ours, K4V4, eager", "ours, K4V4, graph")
    for length in lengths:
        # Lengths of its own for each, so that nobody's first turn is another's second.
        own = {name: length + 2 * STEPS * i for i, name in enumerate(names)}
        rounds = [[measured(model, name, own[name]) for name in names] for _ in range(1 + ROUNDS)]
        here = [{**middle(turns), "length": length} for turns in zip(*rounds, strict=True)]
        ours = {row["cache"].rsplit(" ", 1)[-1]: row["ms"] for row in here[-2:] if "ms" in row}
        for row in here[:-2]:
            if "ms" in row:
                row |= {f"ours_{way}_faster": round(row["ms"] / ms, 2) for way, ms in ours.items()}
        rows += here
        # Told as they come: a run that is cut short has measured what it has measured.
        sys.stderr.write(json.dumps(here) + "\n")
    return rows


def middle(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The turn of the middle time but for the first, whose time stands beside; one that failed if any did."""
    failed = [turn for turn in turns if "failed" in turn]
    if failed:
        return failed[0]
    first, *known = turns
    ordered = sorted(known, key=lambda turn: turn["ms"])
    return ordered[len(known) // 2] | {"first_ms": first["ms"], "turns_ms": [turn["ms"] for turn in known]}


def measured(model: PreTrainedModel, name: str, length: int) -> dict[str, Any]:
    """One cache at one length: milliseconds a token, or why not."""
    row: dict[str, Any] = {"length": length, "cache": name}
    try:
        if name.endswith("graph"):
            row["ms"] = round(captured_ms(model, length), 3)
        else:
            cache = cache_of(model, name, length)
            row["ms"] = round(generate_ms(model, cache, length), 3)
            if isinstance(cache, QuantizedCache):
                row["requantise_ms"] = round(requantise_ms(cache), 3)
            del cache
    except FAILURES as error:
        row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def cache_of(model: PreTrainedModel, name: str, length: int) -> Cache:
    """An empty cache of that name."""
    if name == "DynamicCache":
        return DynamicCache(config=model.config)
    if name in BACKENDS:
        backend, axis = BACKENDS[name]
        return QuantizedCache(
            backend, model.config, nbits=4, axis_key=axis, axis_value=axis, q_group_size=64, residual_length=RESIDUAL
        )
    return build_cache(policy(model), model, max_tokens=length + 2 * STEPS)


def policy(model: PreTrainedModel) -> KVPolicy:
    """K4V4 in all layers, per token."""
    return KVPolicy.uniform("K4V4", layers=model.config.num_hidden_layers, scheme=QuantScheme.per_token())


def prompt(model: PreTrainedModel, length: int) -> Tensor:
    """One sequence of random tokens, none of which is the padding token."""
    return torch.randint(1, 200, (1, length), device=model.device)


def generate_ms(model: PreTrainedModel, cache: Cache, length: int) -> float:
    """Median milliseconds of a token in ``generate()``, called from Python."""
    clock, ids = Clock(), prompt(model, length)
    model.generate(
        ids,
        # Without it, padding tokens in the prompt would be hidden by a mask with holes, which every step then makes.
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([clock]),
    )
    return clock.median_ms()


def captured_ms(model: PreTrainedModel, length: int) -> float:
    """Median milliseconds of a token from our captured step, the choice of the token included."""
    cache = build_cache(policy(model), model, max_tokens=length + 2 * STEPS)
    decoder, clock = Decoder(model, cache), Clock()
    logits = decoder.prefill(prompt(model, length))
    for _ in range(STEPS):
        logits = decoder.step(clock(logits, logits).argmax(-1, keepdim=True))
    why = decoder.why_eager
    mode = decoder.mode
    decoder.close()
    if mode is not DecodeMode.GRAPH:
        raise RuntimeError(f"The step was not captured: {why}.")
    return clock.median_ms()


def requantise_ms(cache: QuantizedCache) -> float:
    """What quantising the whole history again costs, shared out to the tokens between two times."""
    layer = cache.layers[0]
    keys, values = (layer._dequantize(held).contiguous() for held in (layer._quantized_keys, layer._quantized_values))
    found = []
    for _ in range(3):
        clock = Clock()
        clock(keys, keys)
        layer._quantize(keys, axis=layer.axis_key)
        layer._quantize(values, axis=layer.axis_value)
        clock(keys, keys)
        found.append(1e3 * (clock.times[1] - clock.times[0]))
    return min(found) * len(cache.layers) / RESIDUAL


if __name__ == "__main__":
    main()
