"""Runs every search strategy on the same prompts and compares what they found for their evaluations.

Run with ``python -m tests.benchmarks.solvers``; ``--json`` prints one JSON document. ``--model`` may be given several
times. Scores are shared between strategies and kept in ``--store`` where one is given, so a second run is cheap; the
seconds of a strategy are those that its evaluations took when they were measured.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from kvtuner_core.domain.model import BUNDLED_MODEL, ModelSpec
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import SearchResult, SearchSpec, SweepSpec
from kvtuner_core.services import trust
from kvtuner_core.services.searching import search
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.tuning.comparison import compare

SEEDED = ("auto", "nsga2", "nsga2-warm", "nsga2-layers", "moead", "random")
"""Strategies whose answer depends on the seed."""


def run_search(workspace: Workspace, spec: SearchSpec, run: str) -> SearchResult:
    """One search to its end, with its place on stderr."""
    steps = search(workspace, spec)
    try:
        while True:
            progress = next(steps)
            print(f"\r{run} {progress.stage} {progress.done}/{progress.total}      ", end="", file=sys.stderr)
    except StopIteration as finished:
        result: SearchResult = finished.value
        return dataclasses.replace(result, run=run)
    finally:
        print(file=sys.stderr)


def measure(workspace: Workspace, model: str, options: argparse.Namespace) -> dict[str, object]:
    """Every strategy on one model."""
    results = []
    for strategy in options.strategies:
        # The seed also draws bootstrap intervals and is part of a score's key, so each seed is measured anew.
        for seed in options.seeds if strategy in SEEDED else options.seeds[:1]:
            sweep = SweepSpec(model=ModelSpec(reference=model), limit=options.limit, seed=seed)
            spec = SearchSpec(sweep=sweep, evaluations=options.evaluations, strategy=SearchStrategy(strategy))
            results.append(run_search(workspace, spec, f"{strategy}-{seed}"))
    first = results[0]
    return {
        "model": first.sweep.model.name,
        "device": first.provenance.device,
        "dtype": first.provenance.dtype,
        "versions": dict(first.provenance.versions),
        "hypervolume_reference": {"effective_bits": trust.REFERENCE_BITS, "kl": trust.REFERENCE_KL},
        "additive_rank_correlation": {result.run: trust.prediction(result).rank_correlation for result in results},
        "rows": [dataclasses.asdict(row) for row in compare(results)],
    }


def main() -> None:
    """Print JSON, or a line a strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--model", action="append", help="a model; repeatable")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--limit", type=int, default=6, help="calibration prompts")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default=[str(strategy) for strategy in SearchStrategy]
    )
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environment().with_store(options.store or Path(folder) / "bench.duckdb")
        with Workspace.open(settings, inline=True) as workspace:
            reports = [measure(workspace, model, options) for model in options.model or [BUNDLED_MODEL]]
    if options.json:
        print(json.dumps({"models": reports}, indent=1))
        return
    for report in reports:
        print(report["model"], report["device"])
        for row in report["rows"]:
            print("  ", row)


if __name__ == "__main__":
    main()
