"""Times the default study of the bundled model, part by part.

Run with ``python -m tests.benchmarks.study`` (``make bench``); ``--json`` prints one JSON document. The store is fresh,
so that nothing is reused.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from kvtuner_core.domain.study import SearchResult, SearchSpec
from kvtuner_core.services.searching import search
from kvtuner_core.services.workspace import Settings, Workspace


def run_default_study(store: Path) -> SearchResult:
    """Sweep, prune, group, search and evaluate with the defaults, into a new store."""
    settings = dataclasses.replace(Settings.from_environment(), store_path=store)
    workspace = Workspace.open(settings, inline=True)
    steps = search(workspace, SearchSpec())
    try:
        while True:
            progress = next(steps)
            print(f"\r{progress.stage} {progress.done}/{progress.total}    ", end="", file=sys.stderr)
    except StopIteration as finished:
        result: SearchResult = finished.value
        return result
    finally:
        print(file=sys.stderr)
        workspace.close()


def measure() -> dict[str, object]:
    """Run the default study once; seconds by part, and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = run_default_study(Path(folder) / "bench.duckdb")
        total = time.perf_counter() - started
    return {
        "device": result.provenance.device,
        "versions": dict(result.provenance.versions),
        "model": result.sweep.model.name,
        "seconds": {name: round(seconds, 1) for name, seconds in (*result.seconds, ("total", total))},
        "policies": len(result.candidates),
        "front": len(result.front),
    }


def main() -> None:
    """Print JSON, or one line a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    as_json = parser.parse_args().json
    report = measure()
    if as_json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
