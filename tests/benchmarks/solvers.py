"""Runs every search strategy on the same prompts and models, and compares what they found for their evaluations.

Run with ``python -m tests.benchmarks.solvers --json``. Models are the bundled one and variants made from its weights
(`tests.benchmarks.variants`). A policy is scored once, whichever strategy and seed ask for it. Hypervolumes are those
of calibration KLs, after as many evaluations as asked for; intervals are 95% bootstrap intervals over the prompts,
resampled together for all strategies. ``auto`` is compared with each other strategy seed by seed, and over the seeds.
With ``--unseen 6`` the front that each found is scored again on so many evaluation prompts, and compared there, too.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import BUNDLED_MODEL, ModelSpec
from kvtuner_core.domain.ports import Scorer
from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchSpec, SweepResult, SweepSpec
from kvtuner_core.services.measuring import Measurements
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.requests import calibration_session, evaluation_session
from kvtuner_core.services.sweeping import sweep
from kvtuner_core.services.workspace import Settings, Workspace
from kvtuner_core.tuning import PolicySearch
from kvtuner_core.tuning.correlation import spearman
from kvtuner_core.tuning.front import REFERENCE_BITS, REFERENCE_KL, dominated_share, pareto_front
from kvtuner_core.tuning.refitting import evidence
from kvtuner_core.tuning.surrogate import Surrogate
from tests.benchmarks.variants import VARIANTS, make_variant

SEEDED = ("auto", "nsga2", "nsga2-warm", "nsga2-layers", "moead", "random")
"""Strategies whose answer depends on the seed."""

_RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one strategy asked for under one seed.

    Attributes:
        strategy: Its name.
        seed: Its seed.
        candidates: All that it asked for.
        unseen: Effective bits and score on other prompts of each policy of its front; none where not asked for.
    """

    strategy: str
    seed: int
    candidates: tuple[Candidate, ...]
    unseen: tuple[tuple[float, PolicyScore], ...] = ()

    def volumes(self) -> NDArray[np.float64]:
        """Hypervolume on the calibration prompts, then on each resample of them."""
        return _volumes([(item.effective_bits, item.calibration) for item in self.candidates])

    def unseen_volumes(self) -> NDArray[np.float64]:
        """The same of the front on prompts that it was not chosen by."""
        return _volumes(self.unseen)


def _volumes(scored: Sequence[tuple[float, PolicyScore]]) -> NDArray[np.float64]:
    bits = [item for item, _ in scored]
    kls = np.array([score.kl_per_prompt for _, score in scored])
    prompts = kls.shape[1]
    draws = np.random.default_rng(0).integers(prompts, size=(_RESAMPLES, prompts))
    every = np.concatenate([np.arange(prompts)[None, :], draws])
    return np.array([dominated_share(zip(bits, kls[:, draw].mean(axis=1), strict=True)) for draw in every])


def drained(steps):  # type: ignore[no-untyped-def]
    """What a use case returns."""
    try:
        while True:
            next(steps)
    except StopIteration as finished:
        return finished.value


def sweep_spec(model: str, options: argparse.Namespace) -> SweepSpec:
    """The sweep of one model."""
    return SweepSpec(
        model=ModelSpec(reference=model),
        prompts=options.prompts,
        limit=options.limit,
        prefix_tokens=options.prefix_tokens,
        suffix_tokens=options.suffix_tokens,
    )


def search_spec(sweep_spec: SweepSpec, options: argparse.Namespace) -> SearchSpec:
    """What all searches of one model have in common."""
    return SearchSpec(
        sweep=sweep_spec,
        evaluations=options.evaluations,
        evaluation_limit=max(1, options.unseen),
        evaluation_suffix_tokens=options.suffix_tokens,
    )


def run_all(
    swept: SweepResult, scorer: Scorer, unseen: Scorer | None, *, options: argparse.Namespace, name: str
) -> list[Found]:
    """Every strategy and seed on one model."""
    found = []
    for strategy in options.strategies:
        for seed in options.seeds if strategy in SEEDED else options.seeds[:1]:
            spec = search_spec(replace(swept.spec, seed=seed), options)
            spec = replace(spec, strategy=SearchStrategy(strategy))
            search = PolicySearch(spec, space=swept.space, profiles=swept.profiles, geometry=swept.model.layers)
            candidates = tuple(search.candidates(scorer))
            print(f"{name} {strategy} {seed}: {len(candidates)} policies", file=sys.stderr)
            front = pareto_front(candidates) if unseen else ()
            again = unseen.score_many([item.policy for item in front]) if unseen else ()
            pairs = tuple((item.effective_bits, score) for item, score in zip(front, again, strict=True))
            found.append(Found(strategy=strategy, seed=seed, candidates=candidates, unseen=pairs))
    return found


def rows(found: Sequence[Found], model: Surrogate) -> list[dict[str, object]]:
    """One row per strategy: hypervolumes over seeds, and how much less than auto's, with its interval."""
    seen = _compared({(item.strategy, item.seed): item.volumes() for item in found})
    unseen = _compared({(item.strategy, item.seed): item.unseen_volumes() for item in found if item.unseen})
    made = []
    for strategy in dict.fromkeys(item.strategy for item in found):
        asked = [item for each in found if each.strategy == strategy for item in each.candidates]
        kls = [item for item in asked if model.knows(item.policy)]
        made.append(
            {
                "strategy": strategy,
                "evaluations": max(len(each.candidates) for each in found if each.strategy == strategy),
                **seen[strategy],
                "rank_correlation": spearman(
                    [model.predict(item.policy) for item in kls], [item.calibration.kl.mean for item in kls]
                ),
                **({"unseen": unseen[strategy]} if unseen else {}),
            }
        )
    return sorted(made, key=lambda row: -float(str(row["hypervolume"])))


def _compared(volumes: dict[tuple[str, int], NDArray[np.float64]]) -> dict[str, dict[str, object]]:
    """Each strategy's hypervolume, and how far auto is ahead of it, by seed and over the seeds."""
    auto = {seed: values for (strategy, seed), values in volumes.items() if strategy == "auto"}
    made: dict[str, dict[str, object]] = {}
    for strategy in dict.fromkeys(name for name, _ in volumes):
        own = {seed: values for (name, seed), values in volumes.items() if name == strategy}
        behind = {seed: auto[seed] - own.get(seed, next(iter(own.values()))) for seed in auto}
        made[strategy] = {
            "hypervolume": round(float(np.mean([values[0] for values in own.values()])), 5),
            "by_seed": {seed: round(float(values[0]), 5) for seed, values in own.items()},
            "auto_ahead_by": _interval(np.mean(list(behind.values()), axis=0)),
            "auto_ahead_by_seed": {seed: _interval(values) for seed, values in behind.items()},
        }
    return made


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"mean": round(float(values[0]), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def measure(workspace: Workspace, name: str, model: str, options: argparse.Namespace) -> dict[str, object]:
    """Every strategy on one model."""
    spec = sweep_spec(model, options)
    swept: SweepResult = drained(sweep(workspace, spec))
    report = drained(ensure_report(workspace, spec.model))
    measurements = Measurements.of(workspace, calibration_session(workspace, spec), report)
    other = evaluation_session(workspace, search_spec(spec, options), measurements.evaluation.prompts)
    unseen = Measurements.of(workspace, other, report) if options.unseen else None
    found = run_all(swept, measurements, unseen, options=options, name=name)
    surrogate = Surrogate.additive(swept.profiles)
    seen = {item.policy: item.calibration.kl.mean for each in found for item in each.candidates}
    found_terms = evidence(surrogate, seen.items())
    made = rows(found, surrogate)
    return {
        "model": name,
        "layers": len(swept.model.layers),
        "device": swept.provenance.device,
        "dtype": swept.provenance.dtype,
        "created": swept.provenance.created,
        "versions": dict(swept.provenance.versions),
        "prompts": spec.limit,
        "unseen_prompts": options.unseen,
        "tokens": {"prefix": spec.prefix_tokens, "suffix": spec.suffix_tokens},
        "evaluations": options.evaluations,
        "policies_scored": len(seen),
        "hypervolume_reference": {"effective_bits": REFERENCE_BITS, "kl": REFERENCE_KL},
        "pairwise": {
            "kind": str(found_terms.kind),
            "left_out_errors": {str(k): round(e, 4) for k, e in found_terms.errors},
        },
        "rows": made,
        "auto_is_behind": [row["strategy"] for row in made if row["auto_ahead_by"]["high"] < 0],  # type: ignore[index]
    }


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=["bundled", *VARIANTS],
        help=f"bundled, {', '.join(VARIANTS)}, or a model; separated by commas",
    )
    parser.add_argument("--layers", type=int, default=30, help="layers that a variant keeps, evenly spaced")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--prompts", default="calibration", help="calibration prompts: a shipped set or a file")
    parser.add_argument("--limit", type=int, default=6, help="calibration prompts")
    parser.add_argument("--unseen", type=int, default=0, help="evaluation prompts on which fronts are scored again")
    parser.add_argument("--prefix-tokens", type=int, default=256)
    parser.add_argument("--suffix-tokens", type=int, default=32)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default=[str(strategy) for strategy in SearchStrategy]
    )
    parser.add_argument("--store", type=Path, help="keeps scores, so that a second run is cheap")
    return parser.parse_args()


def main() -> None:
    """Print JSON, or a line a strategy."""
    options = parsed()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environment().with_store(options.store or Path(folder) / "bench.duckdb")
        with Workspace.open(settings, inline=True) as workspace:
            for name in options.models:
                reference = BUNDLED_MODEL if name == "bundled" else name
                if name in VARIANTS:
                    reference = make_variant(settings.model_cache, name, Path(folder), layers=options.layers)
                reports.append(measure(workspace, name, reference, options))
    if options.json:
        print(json.dumps({"models": reports}, indent=1))
        return
    for report in reports:
        print(report["model"], report["device"], report["pairwise"])
        for row in report["rows"]:  # type: ignore[attr-defined]
            print("  ", row["strategy"], row["hypervolume"], row["auto_ahead_by"])


if __name__ == "__main__":
    main()
