"""What rotation and growing windows do to uniform policies: KL with and without, on the same prompts.

Run with ``python -m tests.benchmarks.schemes --json``. Models as in `tests.benchmarks.solvers`; intervals are 95%
bootstrap intervals over the prompts.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from kvtuner_core.domain.model import BUNDLED_MODEL, ModelSpec
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.services.evaluating import Evaluation, EvaluationRequest, evaluate
from kvtuner_core.services.policies import PolicyChoice
from kvtuner_core.services.workspace import Settings, Workspace
from tests.benchmarks.solvers import drained
from tests.benchmarks.variants import VARIANTS, make_variant

BASES = (QuantScheme.per_token(), QuantScheme.kivi())


def schemes() -> list[QuantScheme]:
    """Each base as it is, rotated in both ways, and with a tenth and a fifth of the context in full precision."""
    changes: tuple[dict[str, object], ...] = (
        {},
        {"rotation": Rotation.KEYS},
        {"rotation": Rotation.KEYS_AND_VALUES},
        {"residual_share": 0.1},
        {"residual_share": 0.2},
    )
    return [replace(base, **change) for base in BASES for change in changes]  # type: ignore[arg-type]


def measure(workspace: Workspace, reference: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per scheme and pair."""
    made = []
    for scheme in schemes():
        for name in options.pairs:
            request = EvaluationRequest(
                model=ModelSpec(reference=reference),
                policy=PolicyChoice(pair=PrecisionPair.parse(name), scheme=scheme),
                limit=options.limit,
                prefix_tokens=options.prefix_tokens,
                suffix_tokens=options.suffix_tokens,
            )
            found: Evaluation = drained(evaluate(workspace, request))
            kl = found.score.kl
            row = {"scheme": scheme.label, "pair": name, "effective_bits": found.effective_bits}
            row |= {"kl": kl.mean, "low": kl.low, "high": kl.high, "cache_bytes": found.score.cache_bytes}
            print(row, file=sys.stderr)
            made.append(row | {"device": found.provenance.device, "versions": dict(found.provenance.versions)})
    return made


def main() -> None:
    """Print JSON, or a line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["bundled", "outliers"])
    parser.add_argument("--layers", type=int, default=30, help="layers that a variant keeps")
    parser.add_argument("--pairs", type=lambda text: text.split(","), default=["K8V4", "K4V4", "K4V2", "K2V2"])
    parser.add_argument("--limit", type=int, default=6, help="evaluation prompts")
    parser.add_argument("--prefix-tokens", type=int, default=256)
    parser.add_argument("--suffix-tokens", type=int, default=64)
    options = parser.parse_args()
    reports: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environment().with_store(Path(folder) / "bench.duckdb")
        with Workspace.open(settings, inline=True) as workspace:
            for name in options.models:
                reference = BUNDLED_MODEL if name == "bundled" else name
                if name in VARIANTS:
                    reference = make_variant(settings.model_cache, name, Path(folder), layers=options.layers)
                reports[name] = measure(workspace, reference, options)
    if options.json:
        print(json.dumps(reports, indent=1))
        return
    for name, rows in reports.items():
        for row in rows:
            print(name, row["scheme"], row["pair"], f"{row['kl']:.4g} ({row['low']:.4g} to {row['high']:.4g})")


if __name__ == "__main__":
    main()
