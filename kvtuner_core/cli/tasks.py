"""``evaluate --task`` and ``kinds``: right answers through the packed cache, and other kinds of text."""

import argparse

from kvtuner_core.cli import answers
from kvtuner_core.cli.choosing import add_policy, policy_choice
from kvtuner_core.cli.options import Parser, add_common, model_spec, open_workspace
from kvtuner_core.cli.output import Output, table
from kvtuner_core.domain.kinds import KindRow, KindsResult, KindsSpec
from kvtuner_core.domain.metrics import Interval, PolicyScore
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.questions import TaskKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import SearchResult
from kvtuner_core.errors import InputError
from kvtuner_core.services import results
from kvtuner_core.services.asking import DEFAULT_ITEMS, QuestionSource, TaskEvaluation, TaskRequest, evaluate_task
from kvtuner_core.services.kinds import check_kinds, kinds_record, kinds_spec, measure_kinds
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.picking import Budget, pick
from kvtuner_core.services.policies import Match, PolicyChoice
from kvtuner_core.services.trust import kind_checks
from kvtuner_core.services.work import run_here
from kvtuner_core.services.workspace import Workspace


def add_task(parser: argparse.ArgumentParser) -> None:
    """``--task`` and what makes its questions."""
    group = parser.add_argument_group("task", "right answers in place of KL, full precision beside them")
    group.add_argument("--task", type=TaskKind, choices=list(TaskKind), help="what is asked")
    group.add_argument("--items", type=int, default=DEFAULT_ITEMS, metavar="N", help="questions (default: %(default)s)")
    group.add_argument("--pairs", type=int, default=32, metavar="N", help="names with codes in a recall prompt")
    group.add_argument("--length", type=int, metavar="T", help="tokens of a recall prompt, filled up with prose")
    group.add_argument("--questions", default="", metavar="FILE", help="a .jsonl file with prompt and answer")


def run_task(args: argparse.Namespace, out: Output, choice: PolicyChoice) -> None:
    """Evaluate a policy on a task."""
    source = QuestionSource(
        kind=args.task, items=args.items, seed=args.seed, pairs=args.pairs, length=args.length, file=args.questions
    )
    request = TaskRequest(model=model_spec(args), policy=choice, source=source, match=Match(args.match))
    with open_workspace(args) as ws:
        result = out.follow(evaluate_task(ws, request))
    if out.as_json:
        out.document(answers.task_evaluation(result, source=source))
    else:
        out.text(_task_text(result))


def _task_text(result: TaskEvaluation) -> str:
    own, full, change = result.score, result.full, result.difference
    rows = [
        ["right answers", _share(own.accuracy), _share(full.accuracy), _share(change.accuracy, signed=True)],
        ["NLL of the answer", _nats(own.nll), _nats(full.nll), _nats(change.nll, signed=True)],
    ]
    count = len(result.score.replies)
    asked = sum(reply.prompt_tokens for reply in result.score.replies) / count
    stored = f", {result.reused} replies stored before" if result.reused else ""
    return "\n".join(
        [
            f"{result.policy.name} on {result.model.name}, {result.policy.scheme.label}",
            table([str(result.score.kind), result.policy.name, "full precision", "difference"], rows),
            f"{result.difference.lost} of {count} questions lost, {result.difference.gained} gained; 95% intervals",
            f"Prompts of {asked:.0f} tokens on average, {result.provenance.device}{stored}",
        ]
    )


def _share(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value.mean:{sign}.0f}% [{100 * value.low:{sign}.0f}, {100 * value.high:{sign}.0f}]"


def _nats(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.3g} [{value.low:{sign}.3g}, {value.high:{sign}.3g}]"


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``kinds``."""
    spec = KindsSpec.__dataclass_fields__
    parser = commands.add_parser("kinds", help="one policy on prose, maths, chat and retrieval")
    add_policy(parser, required=False)
    parser.add_argument("--run", metavar="ID", help="take the best policy of a search, or demo, within --max-bits")
    parser.add_argument("--max-bits", type=float, metavar="X", help="largest effective bits, with --run")
    parser.add_argument("--prefix-tokens", type=int, default=spec["prefix_tokens"].default, metavar="P")
    parser.add_argument("--suffix-tokens", type=int, default=spec["suffix_tokens"].default, metavar="S")
    parser.add_argument("--items", type=int, default=spec["items"].default, metavar="N", help="questions of each task")
    parser.add_argument(
        "--exact-match-items", type=int, default=0, metavar="N", help="maths questions; minutes each on a CPU"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_common(parser)
    parser.set_defaults(command=run_kinds)


def run_kinds(args: argparse.Namespace, out: Output) -> None:
    """Measure a policy on every kind."""
    if (args.policy is None) == (args.run is None) or (args.run is None) != (args.max_bits is None):
        raise InputError("kinds takes either --policy P, or --run ID with --max-bits X.")
    with open_workspace(args) as ws:
        searched = None if args.run is None else _finished(ws, args.run)
        spec, tuned = _from_search(searched, args) if searched else (_from_policy(ws, args, out), None)
        result = follow_kinds(ws, spec, out)
    if out.as_json:
        out.document(answers.kinds(result, tuned))
    else:
        out.text(kinds_text(result, tuned))


def follow_kinds(ws: Workspace, spec: KindsSpec, out: Output) -> KindsResult:
    """Measure the kinds here and now, kept as a run."""
    check_kinds(spec)
    return out.follow(
        run_here(ws, kinds_record(spec), lambda run, cancelled: measure_kinds(ws, spec, cancelled, run=run))
    )


def add_search_kinds(group: "argparse._ArgumentGroup") -> None:
    """``--kinds`` of a search."""
    group.add_argument(
        "--kinds", type=float, metavar="X", help="also measure the best policy within X bits on other kinds of text"
    )
    group.add_argument("--kinds-items", type=int, default=DEFAULT_ITEMS, metavar="N", help="questions of each task")


def kinds_of_search(
    ws: Workspace, result: SearchResult, args: argparse.Namespace, out: Output
) -> tuple[KindsResult, PolicyScore | None] | None:
    """The kinds of the policy that ``--kinds`` means, with its score on evaluation prompts; ``None`` without."""
    if args.kinds is None:
        return None
    chosen = pick(result, Budget(max_bits=args.kinds))
    return follow_kinds(ws, kinds_spec(result, chosen.policy, items=args.kinds_items), out), chosen.evaluation


def _finished(ws: Workspace, run: str) -> SearchResult:
    result = results.load_search(ws, run)
    if result is None:
        raise InputError(f"kinds needs a finished search; run {run!r} is none. Finish it, or give another run.")
    return result


def _from_search(result: SearchResult, args: argparse.Namespace) -> tuple[KindsSpec, PolicyScore | None]:
    chosen = pick(result, Budget(max_bits=args.max_bits))
    spec = kinds_spec(result, chosen.policy, items=args.items, exact_match_items=args.exact_match_items)
    return spec, chosen.evaluation


def _from_policy(ws: Workspace, args: argparse.Namespace, out: Output) -> KindsSpec:
    choice = policy_choice(args)
    model = model_spec(args)
    report = out.follow(ensure_report(ws, model))
    policy = choice.for_model(report.info, Match(args.match)) or KVPolicy.uniform(
        "K16V16", layers=len(report.info.layers), scheme=choice.scheme or QuantScheme.per_token()
    )
    return KindsSpec(
        model=model,
        policy=policy,
        prefix_tokens=args.prefix_tokens,
        suffix_tokens=args.suffix_tokens,
        items=args.items,
        exact_match_items=args.exact_match_items,
        seed=args.seed,
    )


def kinds_text(result: KindsResult, tuned: PolicyScore | None) -> str:
    """The table of kinds and what it means."""
    header = ["kind", "KL", "low", "high", "top-1", "NLL change", "tokens", "task", "right", "full precision"]
    return "\n".join(
        [
            f"{result.spec.policy.name} on {result.model.name}, {result.spec.policy.scheme.label}, "
            f"{result.effective_bits:.2f} effective bits",
            table(header, [_kind_row(row) for row in result.rows]),
            *(
                f"{'ok   ' if check.good else 'LOOK '} {check.name}: {check.text}"
                for check in kind_checks(result, tuned)
            ),
            f"Run {result.run}; took {result.seconds:.1f} s on {result.provenance.device}",
        ]
    )


def _kind_row(row: KindRow) -> list[object]:
    score = row.score
    cells: list[object] = [str(row.kind), score.kl.mean, score.kl.low, score.kl.high, score.top1_agreement]
    cells += [score.nll_change, score.tokens]
    if row.task is None or row.full is None:
        return [*cells, "-", "-", "-"]
    return [*cells, str(row.task.kind), _share(row.task.accuracy), _share(row.full.accuracy)]
