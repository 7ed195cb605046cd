"""Times one study on one worker and on several of the same machine: ``python -m tests.benchmarks.workers --json``.

The workers are those of the app, one process per GPU. The model has random weights (`LARGE`: twelve layers of
Llama-3.1-8B's geometry) and is made here, so that nothing else is needed; its tokens are bytes. A study is a sweep of
all layers and pairs, a search of 200 policies on ten prompts of 16,384 + 128 tokens, and a short final evaluation, each
time into a new store. With ``--rounds 2`` each number of workers runs it twice; the second time every worker has read
the prompts already. The sweep's seconds hold the start of the workers and the loading of the model.

Each part is told on stderr as it ends, and again when its study ends, with its measurements, the seconds that workers
spent on them, and for the search those in which nothing was asked of them: the solver's own and the store's
(``deciding_seconds``: the same search again, all scores stored). ``identical`` says whether the study found what the
first one did, to the last bit (on a CPU, workers that share its cores have fewer threads, and last digits differ). The
document is printed even where the run is cut short, by ``--seconds`` or by SIGTERM; ``complete`` is then false.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kvtuner_core.compute import DaskCompute
from kvtuner_core.domain.model import DtypeChoice, ModelSpec
from kvtuner_core.domain.runs import Progress
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
        prompts: Calibration prompts.
        checks: Evaluation prompts.
        prefix: Tokens of each prompt that are quantised.
        suffix: Tokens of each that are scored.
        evaluations: Policies that the search scores.
        dtype: Of the model.
    """

    geometry: dict[str, int]
    prompts: int
    checks: int
    prefix: int
    suffix: int
    evaluations: int
    dtype: DtypeChoice


LARGE = Scale(
    geometry={"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 12, "num_attention_heads": 32},
    prompts=10,
    checks=2,
    prefix=16_384,
    suffix=128,
    evaluations=200,
    dtype=DtypeChoice.BFLOAT16,
)
SMALL = Scale(
    geometry={"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    prompts=2,
    checks=2,
    prefix=256,
    suffix=32,
    evaluations=40,
    dtype=DtypeChoice.FLOAT32,
)


def make_model(folder: Path, scale: Scale) -> int:
    """Write a model with random weights and its byte-level tokenizer; its number of parameters."""
    import torch
    from transformers import LlamaConfig

    from tests.benchmarks.random_model import random_llama
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_llama(config, device=device, dtype=getattr(torch, scale.dtype.value))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_prompts(path: Path, scale: Scale, *, count: int, seed: int) -> Path:
    """Write texts of random words, one a prompt, a little longer than is read of them."""
    from tests.benchmarks.random_model import random_texts

    texts = random_texts(count, scale.prefix + scale.suffix + 64, seed=seed)
    path.write_text("\n---\n".join(texts), encoding="utf-8")
    return path


def make_request(folder: Path, scale: Scale) -> SearchSpec:
    """The default search, on the model and prompts in a folder."""
    sweep = SweepSpec(
        model=ModelSpec(reference=str(folder / "model"), dtype=scale.dtype),
        prompts=str(make_prompts(folder / "calibration.txt", scale, count=scale.prompts, seed=1)),
        limit=scale.prompts,
        prefix_tokens=scale.prefix,
        suffix_tokens=scale.suffix,
        scores=False,
    )
    return SearchSpec(
        sweep=sweep,
        evaluations=scale.evaluations,
        evaluation_prompts=str(make_prompts(folder / "evaluation.txt", scale, count=scale.checks, seed=2)),
        evaluation_limit=scale.checks,
        evaluation_suffix_tokens=scale.suffix,
    )


def run(
    compute: DaskCompute, folder: Path, request: SearchSpec, ended: Callable[[str, float], None]
) -> tuple[SearchResult, float, float]:
    """One study into a new store, its seconds, and those of its search once all scores are stored: the solver's own.

    Each part is told to ``ended`` with its seconds.
    """
    started = time.perf_counter()
    store = Store.open(None)
    workspace = Workspace(
        settings=Settings(home=folder, store_path=None), store=store, compute=compute, queue=JobQueue(store)
    )
    try:
        result = to_the_end(search(workspace, request), ended)
        seconds = time.perf_counter() - started
        again = to_the_end(search(workspace, request), lambda *_part: None)
        return result, seconds, dict(again.seconds)[SEARCH_STAGE]
    finally:
        workspace.queue.close()
        store.close()


def to_the_end(steps: Generator[Progress, None, SearchResult], ended: Callable[[str, float], None]) -> SearchResult:
    """Run a search; its result. Tells each part and its seconds when the next one begins."""
    stage, began = "", time.perf_counter()
    try:
        while True:
            progress = next(steps)
            if progress.stage != stage:
                if stage:
                    ended(stage, time.perf_counter() - began)
                stage, began = progress.stage, time.perf_counter()
    except StopIteration as finished:
        result: SearchResult = finished.value
        return result


def found(result: SearchResult) -> bytes:
    """Everything that a study found, as bytes, without times and where it ran."""
    unknown = {"created": "", "device": ""}
    where = replace(result.sweep.provenance, **unknown)
    profiles = tuple(replace(one, kl_seconds=0.0, local_seconds=0.0) for one in result.sweep.profiles)
    bare = replace(
        result,
        run="",
        provenance=replace(result.provenance, **unknown),
        seconds=(),
        candidates=_untimed(result.candidates),
        front=_untimed(result.front),
        baselines=_untimed(result.baselines),
        sweep=replace(result.sweep, seconds=0.0, provenance=where, profiles=profiles),
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


class CutShortError(Exception):
    """The time is over."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What is known so far.

    Attributes:
        scale: How large the study is.
        as_json: Whether it is printed as JSON, or as one line a row.
        rows: One a part.
        about: What else is worth saying.
        study: Number of workers and of the round of the study under way.
        parts: Parts of it that are done.
        complete: Whether nothing was left out.
        shown: Whether it was printed.
    """

    scale: Scale
    as_json: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    shown: bool = False

    def begin(self, *, workers: int, number: int) -> None:
        """A study begins."""
        self.study = {"workers": workers, "round": number}

    def ended(self, what: str, seconds: float) -> None:
        """A part of the study is done; how it compares is known when all of it is."""
        self.parts.append({**self.study, "what": what, "seconds": round(seconds, 3)})
        print(self.parts[-1], file=sys.stderr, flush=True)

    def end(self, rows: Iterable[dict[str, Any]], *, identical: bool) -> None:
        """The study is done."""
        self.parts.clear()
        for row in rows:
            self.rows.append({**self.study, **row, "identical": identical})
            print(self.rows[-1], file=sys.stderr, flush=True)

    def show(self) -> None:
        """Print it, once."""
        if self.shown:
            return
        self.shown = True
        if self.as_json:
            print(json.dumps(self.document(), indent=1), flush=True)
            return
        for row in self.document()["rows"]:
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def document(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        scale = self.scale
        model = {**scale.geometry, "weights": "random", "dtype": str(scale.dtype)}
        prompts = {"count": scale.prompts, "prefix_tokens": scale.prefix, "suffix_tokens": scale.suffix}
        return {
            "complete": self.complete,
            **self.about,
            "versions": {name: _version(name) for name in ("torch", "transformers", "distributed", "duckdb", "numpy")},
            "python": sys.version.split()[0],
            "model": model,
            "prompts": prompts,
            "cores": len(os.sched_getaffinity(0)),
            "rows": _compared([*self.rows, *self.parts]),
        }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def measure(report: Report, counts: tuple[int, ...], rounds: int) -> None:
    """Run the study for each number of workers and compare what was found; the report grows.

    Raises:
        CutShortError: Once the time is over.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        # In a process of its own: what this one kept of a GPU, the first worker would lack.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            report.about["parameters"] = maker.submit(make_model, folder / "model", report.scale).result()
        report.about["making_seconds"] = round(time.perf_counter() - started, 3)
        request = make_request(folder, report.scale)
        report.about["strategy"] = str(request.strategy)
        first: bytes | None = None
        for workers in counts:
            compute = DaskCompute(cache_dir=folder, processes=workers)
            try:
                for number in range(1, rounds + 1):
                    report.begin(workers=workers, number=number)
                    result, seconds, deciding = run(compute, folder, request, report.ended)
                    first = first or found(result)
                    identical = found(result) == first
                    report.about |= {
                        "device": result.provenance.device,
                        "workers": [worker.device for worker in compute.workers()],
                    }
                    report.end(rows_of(result, seconds=seconds, deciding=deciding), identical=identical)
            except CutShortError:
                # Closing takes its time, and there may be none.
                report.show()
                raise
            finally:
                compute.close()
    report.complete = True


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with how many times faster it is than the same part and round on one worker."""
    alone = {(row["what"], row["round"]): row["seconds"] for row in rows if row["workers"] == 1}
    return [
        row | {"speedup": round(alone[row["what"], row["round"]] / row["seconds"], 2)}
        if (row["what"], row["round"]) in alone
        else row
        for row in rows
    ]


def _cut(*_signal: object) -> None:
    # Whatever comes after is only clearing up.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise CutShortError


def main() -> None:
    """Print JSON, or one line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to compare")
    parser.add_argument("--small", action="store_true", help="a small model and short prompts, for a CPU")
    parser.add_argument("--rounds", type=int, default=2, help="studies for each of them, each into a new store")
    parser.add_argument("--seconds", type=int, default=0, help="print what there is after so many seconds; 0: never")
    options = parser.parse_args()
    report = Report(scale=SMALL if options.small else LARGE, as_json=options.json)
    signal.signal(signal.SIGTERM, _cut)
    signal.signal(signal.SIGALRM, _cut)
    signal.alarm(options.seconds)
    try:
        with suppress(CutShortError):
            measure(report, tuple(options.workers), options.rounds)
    finally:
        signal.alarm(0)
        report.show()


if __name__ == "__main__":
    main()
