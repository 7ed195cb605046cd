"""Times one study on one worker and on several of the same machine: ``python -m tests.benchmarks.workers --json``.

The workers are those of the app, one process per GPU. The model has random weights (`LARGE`, Llama's geometry with
about a billion parameters) and is made here, so that nothing else is needed; its tokens are bytes. Each number of
workers runs the study twice, each time into a new store; the second time every worker has read the prompts already.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kvtuner_core.compute import DaskCompute
from kvtuner_core.domain.model import DtypeChoice, ModelSpec
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpec, SweepSpec
from kvtuner_core.jobs import JobQueue
from kvtuner_core.services.searching import SEARCH_STAGE, search
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the study is.

    Attributes:
        geometry: Fields of the model's config.
        prompts: Calibration prompts; there are as many evaluation prompts.
        prefix: Tokens of each prompt that are quantised.
        suffix: Tokens of each that are scored.
        evaluations: Policies that the search scores.
        dtype: Of the model.
    """

    geometry: dict[str, int]
    prompts: int
    prefix: int
    suffix: int
    evaluations: int
    dtype: DtypeChoice


LARGE = Scale(
    geometry={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    prompts=12,
    prefix=8192,
    suffix=256,
    evaluations=200,
    dtype=DtypeChoice.BFLOAT16,
)
SMALL = Scale(
    geometry={"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    prompts=2,
    prefix=256,
    suffix=32,
    evaluations=40,
    dtype=DtypeChoice.FLOAT32,
)


def make_model(folder: Path, scale: Scale) -> int:
    """Write a model with random weights and its byte-level tokenizer; its number of parameters.

    Query and key weights are drawn wider than the rest, since random attention would be nearly uniform otherwise.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.fakes.models import VOCABULARY, tiny_tokenizer

    config = LlamaConfig(
        **scale.geometry,
        num_key_value_heads=max(1, scale.geometry["num_attention_heads"] // 4),
        vocab_size=VOCABULARY,
        max_position_embeddings=2 * (scale.prefix + scale.suffix),
        rope_theta=500000.0,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=258,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                sharp = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(0.0, sharp * parameter.shape[-1] ** -0.5)
    model.to(getattr(torch, scale.dtype.value)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_prompts(path: Path, scale: Scale, *, seed: int) -> Path:
    """Write texts of random words, one a prompt, a little longer than is read of them."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(400)]
    size = scale.prefix + scale.suffix + 64
    texts = (" ".join(rng.choices(words, k=size))[:size] for _ in range(scale.prompts))
    path.write_text("\n---\n".join(texts), encoding="utf-8")
    return path


def make_request(folder: Path, scale: Scale) -> SearchSpec:
    """The default search, on the model and prompts in a folder."""
    sweep = SweepSpec(
        model=ModelSpec(reference=str(folder / "model"), dtype=scale.dtype),
        prompts=str(make_prompts(folder / "calibration.txt", scale, seed=1)),
        limit=scale.prompts,
        prefix_tokens=scale.prefix,
        suffix_tokens=scale.suffix,
    )
    return SearchSpec(
        sweep=sweep,
        evaluations=scale.evaluations,
        evaluation_prompts=str(make_prompts(folder / "evaluation.txt", scale, seed=2)),
        evaluation_limit=scale.prompts,
        evaluation_suffix_tokens=scale.suffix,
    )


def run(compute: DaskCompute, folder: Path, request: SearchSpec) -> tuple[SearchResult, float, float]:
    """One study into a new store, its seconds, and those of its search once all scores are stored: the solver's own."""
    started = time.perf_counter()
    store = Store.open(None)
    workspace = Workspace(
        settings=Settings(home=folder, store_path=None), store=store, compute=compute, queue=JobQueue(store)
    )
    try:
        result = to_the_end(search(workspace, request))
        seconds = time.perf_counter() - started
        again = to_the_end(search(workspace, request))
        return result, seconds, dict(again.seconds)[SEARCH_STAGE]
    finally:
        workspace.queue.close()
        store.close()


def to_the_end(steps: Generator[object, None, SearchResult]) -> SearchResult:
    """Run a search; its result."""
    try:
        while True:
            next(steps)
    except StopIteration as finished:
        result: SearchResult = finished.value
        return result


def found(result: SearchResult) -> bytes:
    """Everything that a study found, as bytes, without times and where it ran."""
    bare = replace(
        result,
        run="",
        provenance=replace(result.provenance, created="", device=""),
        seconds=(),
        candidates=_untimed(result.candidates),
        front=_untimed(result.front),
        baselines=_untimed(result.baselines),
        sweep=replace(result.sweep, seconds=0.0, provenance=replace(result.sweep.provenance, created="", device="")),
    )
    return TypeAdapter(SearchResult).dump_json(bare)


def _untimed(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    return tuple(
        replace(
            item,
            calibration=replace(item.calibration, seconds=0.0),
            evaluation=item.evaluation and replace(item.evaluation, seconds=0.0),
        )
        for item in candidates
    )


def rows_of(result: SearchResult, *, seconds: float, deciding: float) -> Iterator[dict[str, Any]]:
    """One row a part: its seconds, its measurements, the seconds that workers spent on those (scores only).

    The search's row also has the seconds in which its solver decided what to ask, and no worker had anything to do.
    """
    calibrations = [item.calibration for item in (*result.baselines, *result.candidates)]
    evaluations = [item.evaluation for item in (*result.baselines, *result.front) if item.evaluation]
    counts = {"sweep": len(result.sweep.profiles), "search": len(calibrations), "evaluation": len(evaluations)}
    spent = {"search": calibrations, "evaluation": evaluations}
    for name, took in (*result.seconds, ("total", seconds)):
        row: dict[str, Any] = {"what": name, "seconds": round(took, 3)}
        if name in counts:
            row["evaluations"] = counts[name]
        if name in spent:
            row["at_work_seconds"] = round(sum(score.seconds for score in spent[name]), 3)
        if name == SEARCH_STAGE:
            row["deciding_seconds"] = round(deciding, 3)
        yield row


def measure(scale: Scale, counts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Run the study for each number of workers and compare what was found."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_model(folder / "model", scale)
        request = make_request(folder, scale)
        first: bytes | None = None
        for workers in counts:
            compute = DaskCompute(cache_dir=folder, processes=workers)
            try:
                for number in range(1, rounds + 1):
                    result, seconds, deciding = run(compute, folder, request)
                    first = first or found(result)
                    identical = found(result) == first
                    for row in rows_of(result, seconds=seconds, deciding=deciding):
                        rows.append({"workers": workers, "round": number, **row, "identical": identical})
                        print(rows[-1], file=sys.stderr, flush=True)
                devices = [worker.device for worker in compute.workers()]
            finally:
                compute.close()
    return {
        "device": result.provenance.device,
        "workers": devices,
        "versions": dict(result.provenance.versions),
        "model": {"parameters": parameters, **scale.geometry, "weights": "random", "dtype": result.provenance.dtype},
        "prompts": {"count": scale.prompts, "prefix_tokens": scale.prefix, "suffix_tokens": scale.suffix},
        "cores": len(os.sched_getaffinity(0)),
        "strategy": str(request.strategy),
        "rows": _compared(rows),
    }


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with how many times faster it is than the same part and round on one worker."""
    alone = {(row["what"], row["round"]): row["seconds"] for row in rows if row["workers"] == 1}
    return [
        row | {"speedup": round(alone[row["what"], row["round"]] / row["seconds"], 2)}
        if (row["what"], row["round"]) in alone
        else row
        for row in rows
    ]


def main() -> None:
    """Print JSON, or one line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to compare")
    parser.add_argument("--small", action="store_true", help="a small model and short prompts, for a CPU")
    parser.add_argument("--rounds", type=int, default=2, help="studies for each of them, each into a new store")
    options = parser.parse_args()
    report = measure(SMALL if options.small else LARGE, tuple(options.workers), options.rounds)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for row in report["rows"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
