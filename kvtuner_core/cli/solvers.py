"""``solvers``: searches of the same model, prompts and scheme side by side."""

import argparse
from dataclasses import fields

from kvtuner_core.cli import documents
from kvtuner_core.cli.options import Parser, add_common, open_workspace
from kvtuner_core.cli.output import Output, table
from kvtuner_core.errors import InputError
from kvtuner_core.services import results, trust


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("solvers", help="compare a search with the others of the same model and prompts")
    parser.add_argument("--run", required=True, metavar="ID", help="a finished search")
    add_common(parser)
    parser.set_defaults(command=show_solvers)


def show_solvers(args: argparse.Namespace, out: Output) -> None:
    """One row per comparable search, the best first."""
    with open_workspace(args) as ws:
        result = results.load_search(ws, args.run)
        if result is None:
            raise InputError(f"A comparison needs a finished search; run {args.run!r} is none. List them with: runs.")
        rows = trust.solvers(ws, result)
    if out.as_json:
        reference = {"effective_bits": trust.REFERENCE_BITS, "kl": result.spec.objective.worst}
        out.document({"hypervolume_reference": reference, "solvers": [documents.solver(row) for row in rows]})
        return
    names = [field.name for field in fields(trust.SolverRow)]
    out.text(
        table([name.replace("_", " ") for name in names], [[getattr(row, name) for name in names] for row in rows])
    )
    out.text(
        f"Hypervolumes are shares below {trust.REFERENCE_BITS:g} bits and {result.spec.objective.worst:g} "
        f"{result.spec.objective.unit}; "
        "at equal: after as many evaluations as the shortest of these runs; unseen: on evaluation prompts."
    )
