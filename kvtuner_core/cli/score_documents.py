"""Scores of layers as plain JSON documents and as text."""

from kvtuner_core.cli.output import table
from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.scores import ScoreName, ScorePick, SweepScores
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.tuning.score_rows import ScoreRow, score_rows, side_values, table_of

Document = dict[str, object]

FORMULAS: Document = {
    "kl": "isolated KL(full || quantised), nats per token",
    "fisher_error": "second-order KL from gradients and measured errors, nats per token",
    "gradient_error": "|<dL/dK, K'-K> + <dL/dV, V'-V>|, L the suffix's negative log-likelihood, nats per token",
    "output_error": "relative error of the attention output",
    "gradient_norm": "||dL/dW_k||, ||dL/dW_v||, L the next-token cross-entropy, mean over prompts",
    "weight_norm": "||W_k||, ||W_v||",
    "shares": "a layer's share of a score's losses, mean of all pairs; norms lose norm x 4^-bits, each side's mean 1",
}


def scores(result: SweepResult) -> Document:
    """Every score of every layer, how alike they rank, what they cost, and what they would pick."""
    known = table_of(result)
    shares = {name: known.layers(name) for name in known.names}
    layers = [
        {
            "layer": layer,
            "shares": {str(name): shares[name][layer] for name in known.names},
            **(_layer(result.scores, layer) if result.scores else {}),
        }
        for layer in range(len(result.model.layers))
    ]
    found = result.scores
    return {
        "definitions": FORMULAS,
        "layers": layers,
        "rank_correlation": {
            str(one): {str(other): known.correlation(one, other) for other in known.names} for one in known.names
        },
        "table": [_row(row) for row in score_rows(result)],
        "absent": found.weights.absent if found else "",
        "probes": found.errors.probes if found else 0,
        "gradient_norm_tokens": found.weights.tokens if found else 0,
    }


def _layer(known: SweepScores, layer: int) -> Document:
    errors = {
        found.pair.name: {"gradient_error": found.gradient_error, "fisher_error": found.fisher_error}
        for found in known.errors.pairs
        if found.layer == layer
    }
    norms: Document = {}
    for name in (ScoreName.GRADIENT_NORM, ScoreName.WEIGHT_NORM):
        sides = side_values(known, name)
        norms[str(name)] = None if sides is None else {"keys": sides[0][layer], "values": sides[1][layer]}
    return {"pairs": errors, **norms}


def _row(row: ScoreRow) -> Document:
    return {
        "score": str(row.name),
        "seconds": row.seconds,
        "rank_correlation_to_kl": row.correlation,
        "picks": [_pick(pick) for pick in row.picks],
    }


def _pick(pick: ScorePick) -> Document:
    return {
        "max_bits": pick.max_bits,
        "effective_bits": pick.effective_bits,
        "policy": pick.policy.name,
        "layers": [layer.name for layer in pick.policy.layers],
        "calibration_kl": _interval(pick.calibration.kl),
        "evaluation_kl": _interval(pick.evaluation.kl) if pick.evaluation else None,
    }


def _interval(value: Interval) -> Document:
    return {"mean": value.mean, "low": value.low, "high": value.high}


def scores_text(result: SweepResult) -> str:
    """The scores side by side, a line each."""
    rows = score_rows(result)
    bounds = [pick.max_bits for pick in rows[0].picks]
    header = ["score", "seconds", "rank correlation to KL", *(f"KL at {bits:.2f} bits" for bits in bounds)]
    evaluated = any(pick.evaluation for row in rows for pick in row.picks)
    lines = [
        [
            row.name,
            "-" if row.seconds is None else row.seconds,
            "-" if row.correlation is None else row.correlation,
            *((pick.evaluation or pick.calibration).kl.mean for pick in row.picks),
        ]
        for row in rows
    ]
    where = "evaluation" if evaluated else "calibration"
    note = f"; the last columns are of the policies they would pick, on {where} prompts" if bounds else ""
    absent = result.scores.weights.absent if result.scores else ""
    return "\n".join([f"Scores of layers{note}", table(header, lines), *([absent] if absent else [])])
