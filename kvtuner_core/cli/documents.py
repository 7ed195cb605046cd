"""Values of the domain as plain JSON documents."""

import json

from kvtuner_core.cli.score_documents import scores
from kvtuner_core.domain.metrics import Interval, PolicyScore
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.runs import RunRecord
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpace, StoppedCandidate, SweepResult
from kvtuner_core.domain.tasks import Generation
from kvtuner_core.services import trust
from kvtuner_core.services.evaluating import Evaluation
from kvtuner_core.services.models import MemoryRow
from kvtuner_core.services.policies import document, policy_json
from kvtuner_core.services.results import group_of
from kvtuner_core.services.trust import REFERENCE_BITS, Overfit, Prediction, Regret, SolverRow

Document = dict[str, object]

METRICS = (
    "key_error, value_error, output_error: ratio of norms per prompt, head and query, then the mean; "
    "score_error: sum of absolute differences per prompt, head and query, then the mean; "
    "kl: mean KL(full || quantised) in nats per token with only this layer quantised"
)


def model(info: ModelInfo) -> Document:
    """A model's identity and geometry."""
    return {
        "reference": info.reference,
        "name": info.name,
        "architecture": info.architecture,
        "fingerprint": info.fingerprint,
        "cached_layers": len(info.layers),
        "layers": [
            {
                "kv_heads": layer.kv_heads,
                "key_dim": layer.key_dim,
                "value_dim": layer.value_dim,
                "sliding_window": layer.sliding_window,
            }
            for layer in info.layers
        ],
        "query_heads": info.query_heads,
        "hidden_size": info.hidden_size,
        "max_positions": info.max_positions,
        "vocabulary": info.vocabulary,
        "parameters": info.parameters,
    }


def scheme(value: QuantScheme) -> Document:
    """A scheme."""
    return {
        "name": value.name,
        "key_granularity": str(value.key_granularity),
        "value_granularity": str(value.value_granularity),
        "group_size": value.group_size,
        "symmetric": value.symmetric,
        "residual_length": value.residual_length,
        "sink_length": value.sink_length,
        "scale_dtype": str(value.scale_dtype),
        "residual_share": value.residual_share,
        "rotation": str(value.rotation),
    }


def provenance(value: Provenance) -> Document:
    """Where numbers come from."""
    return {
        "created": value.created,
        "device": value.device,
        "device_type": value.device_type,
        "dtype": value.dtype,
        "versions": dict(value.versions),
    }


def interval(value: Interval) -> Document:
    """A mean and its 95% interval."""
    return {"mean": value.mean, "low": value.low, "high": value.high}


def sweep(result: SweepResult, *, run: str) -> Document:
    """A sweep: errors, pairs kept, groups, and what they do to the search space."""
    layers: list[Document] = [
        {
            "layer": index,
            "pairs": {
                profile.pair.name: {
                    "key_error": profile.key_error,
                    "value_error": profile.value_error,
                    "score_error": profile.score_error,
                    "output_error": profile.output_error,
                    "kl": profile.kl,
                }
                for profile in result.profiles
                if profile.layer == index
            },
            "kept": [pair.name for pair in result.space.kept[index]],
            "group": group_of(result.space, index),
        }
        for index in range(len(result.model.layers))
    ]
    return {
        "run": run,
        "model": model(result.model),
        "scheme": scheme(result.spec.scheme),
        "prompts": {
            "reference": result.spec.prompts,
            "digest": result.prompts_digest,
            "limit": result.spec.limit,
            "prefix_tokens": result.spec.prefix_tokens,
            "suffix_tokens": result.spec.suffix_tokens,
        },
        "metrics": METRICS,
        "layers": layers,
        "groups": [
            {"layers": list(group.layers), "pairs": [pair.name for pair in group.pairs], "noise": group.noise}
            for group in result.space.groups
        ],
        "space": space(result.space),
        "scores": scores(result),
        "seed": result.spec.seed,
        "seconds": result.seconds,
        "provenance": provenance(result.provenance),
    }


def space(value: SearchSpace) -> Document:
    """The number of policies before and after pruning and grouping, as decimal logarithms."""
    return {
        "candidates": [pair.name for pair in value.candidates],
        "groups": len(value.groups),
        "log10_before": value.log10_before,
        "log10_pruned": value.log10_pruned,
        "log10_after": value.log10_after,
    }


def candidate(result: SearchResult, item: Candidate) -> Document:
    """A candidate with its policy file's content; KL on evaluation prompts where there is one."""
    score = item.evaluation or item.calibration
    return {
        "name": item.policy.name,
        "nominal_bits": item.nominal_bits,
        "effective_bits": item.effective_bits,
        "kl": score.kl.mean,
        "kl_low": score.kl.low,
        "kl_high": score.kl.high,
        "calibration_kl": item.calibration.kl.mean,
        "calibration_kl_low": item.calibration.kl.low,
        "calibration_kl_high": item.calibration.kl.high,
        "top1_agreement": score.top1_agreement,
        "nll_change": score.nll_change,
        "objectives": objectives(score),
        "calibration_objectives": objectives(item.calibration),
        "policy": json.loads(policy_json(document(result, item))),
    }


def objectives(score: PolicyScore) -> Document:
    """Every objective that was measured, by name, with its 95% interval and unit."""
    measured = [objective for objective in Objective if score.measures(objective)]
    return {str(item): {**interval(score.interval(item)), "unit": item.unit} for item in measured}


def search(result: SearchResult) -> Document:
    """A search: front, baselines, hypervolume and time."""
    return {
        "run": result.run,
        "model": model(result.sweep.model),
        "scheme": scheme(result.spec.sweep.scheme),
        "space": space(result.sweep.space),
        "strategy": str(result.spec.strategy),
        "ranked_by": result.ranked_by,
        "objective": str(result.spec.objective),
        "objective_unit": result.spec.objective.unit,
        "constraints": constraints(result),
        "evaluations": result.evaluations,
        "stop_early": result.spec.stop_early,
        "stopped": [stopped(item) for item in result.stopped],
        "prompts_spared": dict(zip(("spared", "of"), result.spared, strict=True)),
        "front": [candidate(result, item) for item in result.front],
        "baselines": [candidate(result, item) for item in result.baselines],
        "hypervolume": result.hypervolume,
        "hypervolume_reference": {"effective_bits": REFERENCE_BITS, "kl": result.spec.objective.worst},
        "regret": trust.regret(result).regret,
        "regrets": [regret(item) for item in (trust.regret(result), trust.group_regret(result)) if item is not None],
        "additive": additive(trust.prediction(result)),
        "overfit": overfit(trust.overfit(result)),
        "scores": scores(result.sweep),
        "checks": [{"name": item.name, "good": item.good, "text": item.text} for item in trust.checks(result)],
        "seed": result.spec.sweep.seed,
        "seconds": sum(seconds for _, seconds in result.seconds),
        "seconds_by_part": dict(result.seconds),
        "provenance": provenance(result.provenance),
    }


def stopped(value: StoppedCandidate) -> Document:
    """A policy whose evaluation was stopped: bounds and an estimate, nothing measured of the whole."""
    return {
        "name": value.policy.name,
        "order": value.order,
        "effective_bits": value.effective_bits,
        "at_least": value.partial.bound,
        "estimate": value.estimate,
        "dominated_by": value.dominated_by,
        "prompts": len(value.partial.prompts),
    }


def regret(value: Regret) -> Document:
    """What a search did not reach, and over which policies."""
    return {
        "over": value.space,
        "regret": value.regret,
        "log10_policies": value.configurations,
        "enumerated": value.enumerated,
        "text": value.text,
    }


def constraints(result: SearchResult) -> Document:
    """What a search's policies had to keep to."""
    bounds = result.spec.constraints
    return {
        "max_bits": result.spec.max_bits,
        "max_pairs": bounds.max_pairs,
        "forbidden": [str(rule) for rule in bounds.forbidden],
        "pinned": [str(rule) for rule in bounds.pinned],
        "memory": None
        if bounds.memory is None
        else {"max_gib": bounds.memory.max_gib, "batch": bounds.memory.batch, "context": bounds.memory.context},
    }


def additive(value: Prediction) -> Document:
    """The objective, measured on calibration prompts, against the sum of isolated KLs."""
    rows = zip(value.candidates, value.predicted, value.measured, strict=True)
    return {
        "rank_correlation": value.rank_correlation,
        "ratio": value.ratio,
        "pairwise": {
            "kind": str(value.evidence.kind),
            "left_out_errors": {str(kind): error for kind, error in value.evidence.errors},
        },
        "points": [
            {
                "name": item.policy.name,
                "effective_bits": item.effective_bits,
                "predicted_kl": predicted,
                "measured_kl": item.calibration.kl.mean,
                "measured": measured,
            }
            for item, predicted, measured in rows
        ],
    }


def overfit(value: Overfit) -> Document:
    """How the order changes on prompts that a search did not see."""
    return {
        "rank_correlation": value.rank_correlation,
        "front_ratio": value.front_ratio,
        "uniform_ratio": value.uniform_ratio,
        "beaten": value.beaten,
        "front": value.front,
    }


def solver(row: SolverRow) -> Document:
    """What one of several comparable searches found."""
    return {
        "run": row.run,
        "strategy": row.strategy,
        "seed": row.seed,
        "evaluations": row.evaluations,
        "seconds": row.seconds,
        "front": row.front,
        "hypervolume": row.hypervolume,
        "hypervolume_at_equal_evaluations": row.at_equal,
        "hypervolume_evaluation_prompts": row.unseen,
        "regret": row.regret,
    }


def evaluation(result: Evaluation, *, prompt_set: str) -> Document:
    """An evaluation of one policy."""
    return {
        "policy": result.policy.name,
        "model": result.model.name,
        "fingerprint": result.model.fingerprint,
        "scheme": scheme(result.policy.scheme),
        "prompt_set": prompt_set,
        "kl": interval(result.score.kl),
        "top1_agreement": result.score.top1_agreement,
        "nll_change": result.score.nll_change,
        "nominal_bits": result.nominal_bits,
        "effective_bits": result.effective_bits,
        "cache_bytes": result.score.cache_bytes,
        "tokens": result.score.tokens,
        "prompts": result.score.prompts,
        "seconds": result.score.seconds,
        "reused": result.reused,
        "provenance": provenance(result.provenance),
    }


def generation(result: Generation, *, policy: str) -> Document:
    """A finished generation."""
    return {
        "policy": policy,
        "text": result.text,
        "tokens": len(result.token_ids),
        "token_ids": list(result.token_ids),
        "prompt_tokens": result.prompt_tokens,
        "cache_bytes": result.cache_bytes,
        "full_precision_bytes": result.full_precision_bytes,
        "tokens_per_second": result.tokens_per_second,
        "prefill_seconds": result.prefill_seconds,
        "device": result.device,
        "decoding": result.decoding,
    }


def run(record: RunRecord) -> Document:
    """A stored run."""
    return {
        "run": record.id,
        "kind": str(record.kind),
        "status": str(record.status),
        "title": record.title,
        "created": record.created,
        "started": record.started,
        "finished": record.finished,
        "stage": record.stage,
        "done": record.done,
        "total": record.total,
        "error": record.error,
    }


def memory(row: MemoryRow) -> Document:
    """What a uniform cache costs."""
    return {
        "name": row.name,
        "effective_bits": row.effective_bits,
        "bytes": row.bytes,
        "gib": row.bytes / 2**30,
        "bytes_per_token": row.bytes_per_token,
    }
