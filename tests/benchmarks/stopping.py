"""What stopping early spares, and what it changes: every strategy with it and without, each with a store of its own.

Run with ``python -m tests.benchmarks.stopping --json``. The model is a variant of the bundled one with 8 layers
(`tests.benchmarks.variants`), or ``--model bundled``. Passes are made as short as they are where prompts are long.
``spared`` is the share of prompts not read, ``seconds`` what the evaluations took without stopping and with it; a front
is the same if it holds the same policies.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from kvtuner_core.domain.model import BUNDLED_MODEL, ModelSpec
from kvtuner_core.domain.stopping import SLACK, telling
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchSpec, StoppedCandidate, SweepResult, SweepSpec
from kvtuner_core.runtime import capture
from kvtuner_core.services.measuring import Measurements
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.requests import calibration_session
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.store import Store
from kvtuner_core.tuning import PolicySearch, baselines, hypervolume, pareto_front
from kvtuner_core.tuning.asking import Told
from tests.benchmarks.solvers import drained
from tests.benchmarks.variants import VARIANTS, make_variant


def outcomes(swept: SweepResult, scorer: Measurements, spec: SearchSpec) -> list[Told]:
    """Everything that a search asks for, with what became of it."""
    search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
    return list(search.outcomes(scorer))


def compared(whole: list[Told], found: list[Told], scorer: Measurements) -> dict[str, object]:
    """A row: what was spared, and what became of the front.

    Args:
        whole: Outcomes without stopping.
        found: Outcomes with it.
        scorer: Knows scores to the end.
    """
    every, scored = ([item for item in items if isinstance(item, Candidate)] for items in (whole, found))
    stopped = [item for item in found if isinstance(item, StoppedCandidate)]
    known = [(item, score.kl.mean) for item in stopped if (score := scorer.known_score(item.policy)) is not None]
    assert all(item.partial.bound <= kl + SLACK for item, kl in known)
    errors = [abs(item.estimate / kl - 1) for item, kl in known]
    seconds = sum(item.calibration.seconds for item in scored) + sum(item.partial.seconds for item in stopped)
    return {
        "evaluations": len(found),
        "stopped": len(stopped),
        "spared": round(
            sum(item.partial.left for item in stopped) / sum(item.calibration.prompts for item in every), 4
        ),
        "same_front": [item.policy for item in pareto_front(scored)] == [item.policy for item in pareto_front(every)],
        "hypervolume": [round(hypervolume(items), 5) for items in (every, scored)],
        "seconds": [round(sum(item.calibration.seconds for item in every), 1), round(seconds, 1)],
        "median_error_of_estimates": round(statistics.median(errors), 3) if errors else None,
    }


def measure(workspace: Workspace, model: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per strategy and seed."""
    spec = SweepSpec(
        model=ModelSpec(reference=model),
        limit=options.limit,
        prefix_tokens=options.prefix_tokens,
        suffix_tokens=options.suffix_tokens,
        scores=False,
    )
    swept: SweepResult = drained(sweep(workspace, spec))
    report = drained(ensure_report(workspace, spec.model))
    scorer = Measurements.of(workspace, calibration_session(workspace, spec), report)
    uniform = list(scorer.score_many(baselines(layers=len(swept.model.layers), scheme=spec.scheme)))
    rows = []
    for strategy in options.strategies:
        for seed in options.seeds:
            asked = SearchSpec(
                sweep=replace(spec, seed=seed), evaluations=options.evaluations, strategy=SearchStrategy(strategy)
            )
            whole = outcomes(swept, scorer, asked)
            with Store.open(None) as own:
                stopping = replace(scorer, store=own, telling=telling(uniform, asked.objective))
                found = outcomes(swept, stopping, replace(asked, stop_early=True))
            rows.append({"strategy": strategy, "seed": seed, **compared(whole, found, scorer)})
            print(json.dumps(rows[-1]), flush=True, file=sys.stderr if options.json else sys.stdout)
    return rows


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--model", default="scaled", help=f"bundled, {', '.join(VARIANTS)}, or a model")
    parser.add_argument("--layers", type=int, default=8, help="layers that a variant keeps")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--limit", type=int, default=16, help="calibration prompts")
    parser.add_argument("--prefix-tokens", type=int, default=256)
    parser.add_argument("--suffix-tokens", type=int, default=32)
    parser.add_argument("--pass-prompts", type=int, default=2, help="prompts of a pass at most")
    parser.add_argument("--store", type=Path, help="keeps sweep and whole scores, so that a second run is cheap")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--strategies", type=lambda text: text.split(","), default=["auto", "nsga2", "random"])
    return parser.parse_args()


def main() -> None:
    """Print a line a strategy and seed, and JSON in the end where asked for."""
    options = parsed()
    capture._SUFFIX_TOKENS["cpu"] = options.pass_prompts * options.suffix_tokens
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environment().with_store(options.store or Path(folder) / "bench.duckdb")
        model = BUNDLED_MODEL if options.model == "bundled" else options.model
        if model in VARIANTS:
            model = str(make_variant(settings.model_cache, model, Path(folder), layers=options.layers))
        with Workspace.open(settings, inline=True) as workspace:
            rows = measure(workspace, model, options)
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
