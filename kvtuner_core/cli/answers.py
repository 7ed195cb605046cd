"""Tasks and kinds as plain JSON documents."""

from kvtuner_core.cli.documents import Document, interval, model, provenance, scheme
from kvtuner_core.domain.kinds import KindRow, KindsResult
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.questions import TaskDifference, TaskScore
from kvtuner_core.services.asking import QuestionSource, TaskEvaluation
from kvtuner_core.services.trust import kind_checks


def task_evaluation(result: TaskEvaluation, *, source: QuestionSource) -> Document:
    """A policy on a task, full precision beside it."""
    return {
        "policy": result.policy.name,
        "model": result.model.name,
        "fingerprint": result.model.fingerprint,
        "scheme": scheme(result.policy.scheme),
        "task": str(source.kind),
        "items": len(result.score.replies),
        "seed": source.seed,
        **({"pairs": source.pairs, "length": source.length} if source.kind == "recall" else {}),
        "score": task_score(result.score),
        "full_precision": task_score(result.full),
        "difference": task_difference(result.difference),
        "nominal_bits": result.nominal_bits,
        "effective_bits": result.effective_bits,
        "replies": [
            {
                "correct": own.correct,
                "nll": own.nll,
                "given": own.given,
                "prompt_tokens": own.prompt_tokens,
                "seconds": own.seconds,
                "full_precision_correct": full.correct,
                "full_precision_nll": full.nll,
            }
            for own, full in zip(result.score.replies, result.full.replies, strict=True)
        ],
        "reused": result.reused,
        "provenance": provenance(result.provenance),
    }


def task_score(value: TaskScore) -> Document:
    """Accuracy and NLL of the right answers."""
    return {"accuracy": interval(value.accuracy), "nll": interval(value.nll)}


def task_difference(value: TaskDifference) -> Document:
    """A policy minus full precision on the same questions."""
    return {
        "accuracy": interval(value.accuracy),
        "nll": interval(value.nll),
        "lost": value.lost,
        "gained": value.gained,
    }


def kinds(result: KindsResult, tuned: PolicyScore | None) -> Document:
    """A policy on every kind of text."""
    return {
        "run": result.run,
        "policy": result.spec.policy.name,
        "model": model(result.model),
        "scheme": scheme(result.spec.policy.scheme),
        "effective_bits": result.effective_bits,
        "kinds": [kind(row) for row in result.rows],
        "tuned_kl": None if tuned is None else interval(tuned.kl),
        "checks": [{"name": item.name, "good": item.good, "text": item.text} for item in kind_checks(result, tuned)],
        "seed": result.spec.seed,
        "seconds": result.seconds,
        "provenance": provenance(result.provenance),
    }


def kind(row: KindRow) -> Document:
    """A policy on one kind of text."""
    score = row.score
    found: Document = {
        "kind": str(row.kind),
        "prompts": row.prompts,
        "prompts_digest": row.prompts_digest,
        "kl": interval(score.kl),
        "top1_agreement": score.top1_agreement,
        "nll_change": score.nll_change,
        "tokens": score.tokens,
        "task": None,
    }
    if row.task is None or row.full is None or row.difference is None:
        return found
    asked: Document = {
        "name": str(row.task.kind),
        "items": len(row.task.replies),
        "score": task_score(row.task),
        "full_precision": task_score(row.full),
        "difference": task_difference(row.difference),
    }
    return found | {"task": asked}
