"""``sweep`` and ``search``."""

import argparse
from dataclasses import replace
from pathlib import Path

from kvtuner_core.cli import answers, documents, tasks
from kvtuner_core.cli.options import Parser, add_common, add_sweep, open_workspace, sweep_spec
from kvtuner_core.cli.output import Output, table
from kvtuner_core.cli.score_documents import scores_text
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.strategy import Constraints, LayerPair, MemoryBound, SearchStrategy
from kvtuner_core.domain.study import Candidate, SearchResult, SearchSpec, SweepResult
from kvtuner_core.errors import InputError, KVTunerError
from kvtuner_core.services import trust
from kvtuner_core.services.files import write_atomically
from kvtuner_core.services.results import DEMO_RUN, group_of
from kvtuner_core.services.studies import search, search_record, sweep, sweep_record
from kvtuner_core.services.work import run_here
from kvtuner_core.store import to_json


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add both commands' arguments."""
    parser = commands.add_parser("sweep", help="measure every layer under every precision pair, prune and group")
    add_sweep(parser)
    add_common(parser)
    parser.set_defaults(command=run_sweep)
    parser = commands.add_parser("search", help="sweep, then search policies and score the front on other prompts")
    add_sweep(parser)
    add_common(parser)
    _add_search(parser)
    parser.set_defaults(command=run_search)


def _add_search(parser: argparse.ArgumentParser) -> None:
    spec = SearchSpec()
    group = parser.add_argument_group("search")
    group.add_argument(
        "--strategy",
        choices=[str(strategy) for strategy in SearchStrategy],
        default=str(spec.strategy),
        help="how policies are chosen; nsga2 is as published (default: %(default)s)",
    )
    group.add_argument(
        "--objective",
        choices=[str(objective) for objective in Objective],
        default=str(spec.objective),
        help="what is minimised beside the bits (default: %(default)s)",
    )
    group.add_argument("--evaluations", type=int, default=spec.evaluations, metavar="N", help="policies to score")
    group.add_argument("--population", type=int, default=spec.population, metavar="P", help="of a generation")
    group.add_argument(
        "--stop-early",
        action=argparse.BooleanOptionalAction,
        default=spec.stop_early,
        help="leave an evaluation once its policy is beaten for certain (default: %(default)s)",
    )
    group.add_argument("--max-bits", type=float, metavar="X", help="largest effective bits of a candidate")
    group.add_argument("--max-gib", type=float, metavar="Y", help="most GiB of the cache at --batch and --context")
    group.add_argument("--batch", type=int, metavar="B", help="sequences served together (default: 1)")
    group.add_argument("--context", type=int, metavar="L", help="tokens of each sequence (default: 8192)")
    group.add_argument("--max-pairs", type=int, metavar="N", help="most different pairs in one policy")
    group.add_argument(
        "--forbid", type=_rule, action="append", default=[], metavar="LAYER:PAIR", help="such as 0:K4V2; repeatable"
    )
    group.add_argument(
        "--pin", type=_rule, action="append", default=[], metavar="LAYER:PAIR", help="such as 0:K8V8; repeatable"
    )
    group.add_argument(
        "--evaluation-prompts", default=spec.evaluation_prompts, metavar="FILE", help="on which the front is scored"
    )
    group.add_argument("--evaluation-limit", type=int, default=spec.evaluation_limit, metavar="N")
    group.add_argument("--evaluation-suffix-tokens", type=int, default=spec.evaluation_suffix_tokens, metavar="S")
    tasks.add_search_kinds(group)
    group.add_argument(
        "--demo", type=Path, metavar="FILE", help="also write the result as a study that ships with the project"
    )


def _rule(text: str) -> LayerPair:
    try:
        return LayerPair.parse(text)
    except KVTunerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_sweep(args: argparse.Namespace, out: Output) -> None:
    """Run and show a sweep."""
    spec = sweep_spec(args)
    record = sweep_record(spec)
    with open_workspace(args) as ws:
        result = out.follow(run_here(ws, record, lambda run, cancelled: sweep(ws, spec, cancelled, run=run)))
    if out.as_json:
        out.document(documents.sweep(result, run=record.id))
    else:
        out.text(_sweep_text(result, record.id))


def search_spec(args: argparse.Namespace) -> SearchSpec:
    """The search asked for."""
    return SearchSpec(
        sweep=sweep_spec(args),
        evaluations=args.evaluations,
        population=args.population,
        max_bits=args.max_bits,
        evaluation_prompts=args.evaluation_prompts,
        evaluation_limit=args.evaluation_limit,
        evaluation_suffix_tokens=args.evaluation_suffix_tokens,
        strategy=SearchStrategy(args.strategy),
        constraints=Constraints(
            max_pairs=args.max_pairs, forbidden=tuple(args.forbid), pinned=tuple(args.pin), memory=_memory(args)
        ),
        objective=Objective(args.objective),
        stop_early=args.stop_early,
    )


def _memory(args: argparse.Namespace) -> MemoryBound | None:
    given = {name: value for name in ("batch", "context") if (value := getattr(args, name)) is not None}
    if args.max_gib is not None:
        return MemoryBound(max_gib=args.max_gib, **given)
    if given:
        raise InputError(
            f"--{next(iter(given))} says where --max-gib holds; got no --max-gib. Give one, or leave it out."
        )
    return None


def run_search(args: argparse.Namespace, out: Output) -> None:
    """Run and show a search."""
    spec = search_spec(args)
    record = search_record(spec)
    with open_workspace(args) as ws:
        result = out.follow(run_here(ws, record, lambda run, cancelled: search(ws, spec, cancelled, run=run)))
        kinds = tasks.kinds_of_search(ws, result, args, out)
    if args.demo is not None:
        shipped = replace(result, run=DEMO_RUN, shipped=True)
        write_atomically(args.demo, to_json(shipped).encode() + b"\n")
    if out.as_json:
        out.document(documents.search(result) | ({"kinds": answers.kinds(*kinds)} if kinds else {}))
    else:
        out.text("\n\n".join([_search_text(result), *([tasks.kinds_text(*kinds)] if kinds else [])]))


def _sweep_text(result: SweepResult, run: str) -> str:
    pairs = result.space.candidates
    errors = {(profile.layer, profile.pair): profile.output_error for profile in result.profiles}
    rows = []
    for layer, kept in enumerate(result.space.kept):
        marked = [f"{errors[layer, pair]:.3f}{'*' if pair in kept else ' '}" for pair in pairs]
        rows.append([layer, group_of(result.space, layer), *marked])
    space = result.space
    return "\n".join(
        [
            f"Run {run}: {result.model.name}, {result.spec.scheme.label}, {result.spec.limit} prompts",
            "Output error of each layer and pair; * marks the pairs kept",
            table(["layer", "group", *(pair.name for pair in pairs)], rows),
            f"{len(space.groups)} layer groups; policies to choose from: 10^{space.log10_before:.1f} before, "
            f"10^{space.log10_pruned:.1f} after pruning, 10^{space.log10_after:.1f} after grouping",
            scores_text(result),
            f"Took {result.seconds:.1f} s on {result.provenance.device}",
        ]
    )


def _search_text(result: SearchResult) -> str:
    objective = result.spec.objective
    name = objective.label
    header = ["policy", "nominal", "effective", name, "low", "high", "top-1", f"calibration {name}"]
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds)
    return "\n".join(
        [
            f"Run {result.run}: {result.sweep.model.name}, {result.spec.sweep.scheme.label}",
            f"Front of {result.evaluations} policies; {name} in {objective.unit} on prompts the search did not see",
            table(header, [_row(item, objective) for item in result.front]),
            "Uniform policies",
            table(header, [_row(item, objective) for item in result.baselines]),
            f"Hypervolume {result.hypervolume:.4f} by {_strategy(result)}. Took {parts} on {result.provenance.device}",
            *([trust.stops(result)] if result.spec.stop_early else []),
            *_regret_lines(result),
            *(f"{'ok   ' if check.good else 'LOOK '} {check.name}: {check.text}" for check in trust.checks(result)),
            f"Pick one with: python -m kvtuner_core pick --run {result.run} --max-bits 4 -o policy.json",
        ]
    )


def _regret_lines(result: SearchResult) -> list[str]:
    found = (trust.regret(result), trust.group_regret(result))
    return [f"Not reached: {item.text}" for item in found if item is not None]


def _row(item: Candidate, objective: Objective) -> list[object]:
    score = item.evaluation or item.calibration
    value = score.interval(objective)
    return [
        item.policy.name,
        item.nominal_bits,
        item.effective_bits,
        value.mean,
        value.low,
        value.high,
        score.top1_agreement,
        item.calibration.interval(objective).mean,
    ]


def _strategy(result: SearchResult) -> str:
    return f"{result.spec.strategy}, ranked by {result.ranked_by}" if result.ranked_by else str(result.spec.strategy)
