"""``pick``, ``export`` and ``import``: policy files."""

import argparse
import json
from pathlib import Path

from kvtuner_core.cli import documents
from kvtuner_core.cli.options import Parser, add_common, add_scheme, needed_scheme, open_workspace
from kvtuner_core.cli.output import Output
from kvtuner_core.domain.document import PolicyDocument
from kvtuner_core.errors import InputError
from kvtuner_core.services import results
from kvtuner_core.services.files import write_atomically
from kvtuner_core.services.picking import Budget, candidate_gib, pick
from kvtuner_core.services.policies import (
    FileFormat,
    document,
    export_policy,
    import_policy,
    load_policy,
    policy_json,
)

_FORMATS = [str(name) for name in FileFormat]


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands' arguments."""
    parser = commands.add_parser("pick", help="the best policy of a search within a budget of bits or memory")
    parser.add_argument("--run", required=True, metavar="ID", help="a finished search, or demo")
    parser.add_argument("--max-bits", type=float, metavar="X", help="largest effective bits")
    parser.add_argument("--max-gib", type=float, metavar="Y", help="largest cache at --batch and --context, in GiB")
    parser.add_argument("--batch", type=int, default=1, metavar="B")
    parser.add_argument("--context", type=int, default=4096, metavar="L")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the policy file (default: stdout)")
    add_common(parser)
    parser.set_defaults(command=run_pick)
    parser = commands.add_parser("export", help="a policy file in another project's format")
    parser.add_argument("--policy", required=True, type=Path, metavar="FILE")
    parser.add_argument("--to", required=True, choices=_FORMATS)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file (default: stdout)")
    add_common(parser, store=False)
    parser.set_defaults(command=run_export)
    parser = commands.add_parser("import", help="a policy file from another project's format")
    parser.add_argument("--from", required=True, choices=_FORMATS, dest="source")
    parser.add_argument("file", type=Path, metavar="FILE")
    add_scheme(parser, default=None)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the policy file (default: stdout)")
    add_common(parser, store=False)
    parser.set_defaults(command=run_import)


def run_pick(args: argparse.Namespace, out: Output) -> None:
    """Pick a policy and write its file."""
    budget = Budget(max_bits=args.max_bits, max_gib=args.max_gib, batch=args.batch, context=args.context)
    with open_workspace(args) as ws:
        result = results.load_search(ws, args.run)
    if result is None:
        raise InputError(f"A pick needs a finished search; run {args.run!r} is none. Finish it, or give another run.")
    chosen = pick(result, budget)
    policy = document(result, chosen, notes=_notes(budget))
    if args.output is not None:
        write_atomically(args.output, policy_json(policy).encode())
    gib = candidate_gib(result, chosen, batch=budget.batch, context=budget.context)
    if out.as_json:
        found = documents.candidate(result, chosen) | {"policy": json.loads(policy_json(policy))}
        place = {"gib": gib, "batch": budget.batch, "context": budget.context, "output": _name(args.output)}
        out.document({"run": result.run, **found, **place})
    elif args.output is None:
        out.text(policy_json(policy), end="")
    else:
        out.text(
            f"{args.output}: {chosen.policy.name}, {chosen.effective_bits:.3f} effective bits, "
            f"KL {chosen.kl.mean:.4g} [{chosen.kl.low:.4g}, {chosen.kl.high:.4g}], "
            f"{gib:.3g} GiB at {budget.batch} x {budget.context} tokens"
        )


def _notes(budget: Budget) -> tuple[tuple[str, str], ...]:
    notes = []
    if budget.max_bits is not None:
        notes.append(("max_bits", f"{budget.max_bits:g}"))
    if budget.max_gib is not None:
        notes += [("max_gib", f"{budget.max_gib:g}"), ("batch", str(budget.batch)), ("context", str(budget.context))]
    return tuple(notes)


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def run_export(args: argparse.Namespace, out: Output) -> None:
    """Write a policy in another project's format."""
    loaded = load_policy(args.policy)
    text = export_policy(loaded.policy, to=args.to)
    _deliver(args, out, text, {"format": args.to, "layers": len(loaded.policy.layers), "content": text})


def run_import(args: argparse.Namespace, out: Output) -> None:
    """Write another project's policy as our own."""
    imported: PolicyDocument = import_policy(args.file, source=args.source, scheme=needed_scheme(args))
    text = policy_json(imported)
    _deliver(args, out, text, {"format": args.source, "policy": json.loads(text)})


def _deliver(args: argparse.Namespace, out: Output, text: str, summary: dict[str, object]) -> None:
    if args.output is not None:
        write_atomically(args.output, text.encode())
    if out.as_json:
        out.document(summary | {"output": _name(args.output)})
    elif args.output is None:
        out.text(text, end="")
    else:
        out.text(f"Wrote {args.output}")
