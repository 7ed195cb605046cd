"""``models`` and ``runs``: what there is."""

import argparse

from kvtuner_core.cli import documents
from kvtuner_core.cli.options import (
    Parser,
    add_common,
    add_model,
    add_scheme,
    needed_scheme,
    open_lightly,
    open_workspace,
)
from kvtuner_core.cli.output import Output, table
from kvtuner_core.domain.model import ModelInfo
from kvtuner_core.services import models, results
from kvtuner_core.services.workspace import Workspace


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add both commands' arguments."""
    parser = commands.add_parser("models", help="list models, or show one's geometry and what its cache costs")
    add_model(parser, default=None)
    add_scheme(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="sequences of the memory table")
    parser.add_argument("--context", type=int, default=4096, metavar="L", help="tokens of each of them")
    add_common(parser)
    parser.set_defaults(command=show_models)
    parser = commands.add_parser("runs", help="list stored runs, show one's result, or delete one")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--run", metavar="ID", help="show this run's result")
    chosen.add_argument("--delete", metavar="ID", help="forget this run")
    add_common(parser)
    parser.set_defaults(command=show_runs)


def show_models(args: argparse.Namespace, out: Output) -> None:
    """List the models, or show one."""
    with open_lightly(args) as ws:
        if args.model is None:
            _list_models(ws, out)
        else:
            _show_model(ws, args, out)


def _list_models(ws: Workspace, out: Output) -> None:
    choices = models.list_models(ws)
    if out.as_json:
        fields = ("reference", "name", "available", "hint")
        out.document({"models": [{name: getattr(choice, name) for name in fields} for choice in choices]})
        return
    rows = [[choice.reference, "yes" if choice.available else "no", choice.hint] for choice in choices]
    out.text(table(["model", "here", ""], rows))


def _show_model(ws: Workspace, args: argparse.Namespace, out: Output) -> None:
    info = models.describe(ws, args.model)
    scheme = needed_scheme(args)
    rows = models.memory_rows(info, scheme, batch=args.batch, context=args.context)
    if out.as_json:
        out.document(
            {
                "model": documents.model(info),
                "scheme": documents.scheme(scheme),
                "batch": args.batch,
                "context": args.context,
                "memory": [documents.memory(row) for row in rows],
            }
        )
        return
    out.text(_geometry(info))
    out.text(f"Cache of {args.batch} x {args.context} tokens, {scheme.label}:")
    cells = [[row.name, row.effective_bits, row.bytes / 2**30, row.bytes_per_token] for row in rows]
    out.text(table(["pair", "effective bits", "GiB", "bytes per token"], cells))


def _geometry(info: ModelInfo) -> str:
    kinds = sorted({f"{layer.kv_heads} x {layer.key_dim}/{layer.value_dim}" for layer in info.layers})
    windows = sorted({layer.sliding_window for layer in info.layers if layer.sliding_window is not None})
    rows = [
        ("name", info.name),
        ("architecture", info.architecture),
        ("cached layers", str(len(info.layers))),
        ("KV heads x key/value dim", ", ".join(kinds)),
        ("query heads", str(info.query_heads)),
        ("sliding windows", ", ".join(str(window) for window in windows) or "none"),
        ("longest context", str(info.max_positions)),
    ]
    return "\n".join(f"{name:<26}{value}" for name, value in rows)


def show_runs(args: argparse.Namespace, out: Output) -> None:
    """List the runs, show one, or delete one."""
    with open_workspace(args) as ws:
        if args.delete is not None:
            results.delete_run(ws, args.delete)
            _say_deleted(args.delete, out)
        elif args.run is not None:
            _show_run(ws, args.run, out)
        else:
            _list_runs(ws, out)


def _say_deleted(run: str, out: Output) -> None:
    if out.as_json:
        out.document({"deleted": run})
    else:
        out.text(f"Deleted run {run}")


def _list_runs(ws: Workspace, out: Output) -> None:
    records = results.list_runs(ws)
    if out.as_json:
        out.document({"runs": [documents.run(record) for record in records]})
        return
    rows = [
        [record.id, str(record.status), f"{record.done}/{record.total}", record.created, record.title, record.error]
        for record in records
    ]
    out.text(table(["run", "status", "done", "created", "title", ""], rows))


def _show_run(ws: Workspace, run: str, out: Output) -> None:
    record = results.find_run(ws, run)
    if not out.as_json:
        lines = [f"{name:<10}{value}" for name, value in documents.run(record).items() if value != ""]
        out.text("\n".join(lines))
        return
    found: dict[str, object] = {**documents.run(record), "result": None}
    study = results.load_search(ws, run)
    swept = results.load_sweep(ws, run)
    if study is not None:
        found["result"] = documents.search(study)
    elif swept is not None:
        found["result"] = documents.sweep(swept, run=run)
    out.document(found)
