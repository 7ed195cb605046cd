"""Arguments that several commands share, and the values they mean."""

import argparse
from pathlib import Path
from typing import NoReturn

from kvtuner_core.domain.model import BUNDLED_MODEL, DeviceChoice, DtypeChoice, ModelSpec
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.domain.study import GroupingOptions, NoiseRule, PruningOptions, SweepSpec
from kvtuner_core.errors import InputError, SchemeError, StoreError
from kvtuner_core.services.workspace import Settings, Workspace

SCHEMES = ("per-token", "kivi")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose options are written in full."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # type: ignore[misc,arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise an `InputError` in place of printing the usage."""
        raise InputError(f"{message.rstrip('.')}. See: python -m {self.prog} --help")


def add_common(parser: argparse.ArgumentParser, *, store: bool = True) -> None:
    """``--json``, and ``--store`` where results are kept."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else")
    if store:
        parser.add_argument("--store", type=Path, metavar="FILE", help="the result store (default: KVTUNER_STORE)")


def add_model(parser: argparse.ArgumentParser, *, default: str | None = BUNDLED_MODEL) -> None:
    """``--model``, ``--device`` and ``--dtype``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=default,
        help="bundled name, folder in Hugging Face layout, .gguf file, or hub id (default: %(default)s)",
    )
    group.add_argument("--device", choices=[str(choice) for choice in DeviceChoice], default="auto")
    group.add_argument("--dtype", choices=[str(choice) for choice in DtypeChoice], default="auto")


def add_scheme(parser: argparse.ArgumentParser, *, default: str | None = "per-token") -> None:
    """``--scheme`` and what refines it."""
    group = parser.add_argument_group("quantisation scheme")
    group.add_argument("--scheme", choices=SCHEMES, default=default)
    group.add_argument(
        "--group-size", type=int, metavar="G", help="values that share a scale (per-token: head_dim; kivi: 32)"
    )
    group.add_argument(
        "--residual", type=int, metavar="R", help="newest tokens in full precision (per-token: 0; kivi: 32)"
    )
    group.add_argument("--symmetric", action="store_true", help="no offsets, codes centred on zero")
    group.add_argument("--sinks", type=int, default=0, metavar="N", help="first tokens in full precision")
    group.add_argument(
        "--residual-share",
        type=float,
        default=0.0,
        metavar="S",
        help="newest share of the context in full precision, 0 to 0.5, where it is more than --residual",
    )
    group.add_argument(
        "--rotation",
        choices=[str(rotation) for rotation in Rotation],
        default=str(Rotation.NONE),
        help="sides turned by a Hadamard transform before they are quantised",
    )


def add_cut(parser: argparse.ArgumentParser, *, prompts: str, limit: int | None, suffix: int) -> None:
    """``--prompts`` and how they are cut, and ``--seed``."""
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts",
        default=prompts,
        metavar="FILE",
        help="a shipped set, a .jsonl or .txt file, or upload:DIGEST (default: %(default)s)",
    )
    group.add_argument("--limit", type=int, default=limit, metavar="N", help="take the first N prompts")
    group.add_argument("--prefix-tokens", type=int, default=512, metavar="P", help="tokens read first and quantised")
    group.add_argument("--suffix-tokens", type=int, default=suffix, metavar="S", help="tokens scored")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """All of a sweep."""
    spec = SweepSpec()
    add_model(parser)
    add_scheme(parser)
    add_cut(parser, prompts=spec.prompts, limit=spec.limit, suffix=spec.suffix_tokens)
    group = parser.add_argument_group("candidates, pruning and grouping")
    group.add_argument(
        "--bits", type=_bits, default=spec.bits, metavar="LIST", help="candidate bit widths, such as 2,4,8"
    )
    group.add_argument("--no-pruning", action="store_true", help="keep every pair")
    group.add_argument(
        "--no-uniform-choices", action="store_true", help="choose from a group's kept pairs alone, as published"
    )
    group.add_argument("--no-grouping", action="store_true", help="let every layer choose alone")
    group.add_argument("--eps", type=float, default=spec.grouping.eps, help="DBSCAN's largest distance")
    group.add_argument("--min-samples", type=int, default=spec.grouping.min_samples, help="DBSCAN's core size")
    group.add_argument(
        "--noise", choices=[str(rule) for rule in NoiseRule], default="alone", help="layers that DBSCAN leaves over"
    )
    group = parser.add_argument_group("scores of layers")
    group.add_argument("--no-scores", action="store_true", help="leave out the scores by gradients and weights")
    group.add_argument(
        "--compare-scores", action="store_true", help="also evaluate the policies that each score would pick"
    )


def _bits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"bit widths are written like 2,4,8; got {text!r}") from error


def model_spec(args: argparse.Namespace) -> ModelSpec:
    """The model asked for."""
    return ModelSpec(reference=args.model, device=DeviceChoice(args.device), dtype=DtypeChoice(args.dtype))


def scheme(args: argparse.Namespace) -> QuantScheme | None:
    """The scheme asked for, or ``None`` where the command has no default and nothing was said.

    Raises:
        SchemeError: If its parts do not go together.
    """
    rotation = Rotation(args.rotation)
    whole = (args.symmetric, args.sinks, args.residual_share, rotation is not Rotation.NONE)
    if args.scheme is None and args.group_size is None and args.residual is None and not any(whole):
        return None
    kivi = args.scheme == "kivi"
    residual = args.residual if args.residual is not None else (32 if kivi else 0)
    if kivi:
        return QuantScheme.kivi(
            group_size=32 if args.group_size is None else args.group_size,
            residual_length=residual,
            symmetric=args.symmetric,
            sink_length=args.sinks,
            residual_share=args.residual_share,
            rotation=rotation,
        )
    return QuantScheme.per_token(
        group_size=args.group_size,
        residual_length=residual,
        symmetric=args.symmetric,
        sink_length=args.sinks,
        residual_share=args.residual_share,
        rotation=rotation,
    )


def needed_scheme(args: argparse.Namespace) -> QuantScheme:
    """The scheme asked for, where one must be given.

    Raises:
        SchemeError: If none was given.
    """
    found = scheme(args)
    if found is None:
        raise SchemeError("A scheme must be given; got none. Use --scheme per-token or --scheme kivi.")
    return found


def sweep_spec(args: argparse.Namespace) -> SweepSpec:
    """The sweep asked for."""
    return SweepSpec(
        model=model_spec(args),
        scheme=needed_scheme(args),
        bits=args.bits,
        prompts=args.prompts,
        limit=args.limit,
        prefix_tokens=args.prefix_tokens,
        suffix_tokens=args.suffix_tokens,
        seed=args.seed,
        pruning=PruningOptions(enabled=not args.no_pruning, uniform_choices=not args.no_uniform_choices),
        grouping=GroupingOptions(
            enabled=not args.no_grouping, eps=args.eps, min_samples=args.min_samples, noise=NoiseRule(args.noise)
        ),
        scores=not args.no_scores,
        compare_scores=args.compare_scores,
    )


def open_workspace(args: argparse.Namespace) -> Workspace:
    """The workspace with the store asked for."""
    return Workspace.open(Settings.from_environment().with_store(args.store), inline=True)


def open_lightly(args: argparse.Namespace) -> Workspace:
    """A workspace for a command that keeps nothing: a locked default store does not stand in its way."""
    settings = Settings.from_environment()
    try:
        return Workspace.open(settings.with_store(args.store), inline=True)
    except StoreError:
        if args.store is not None:
            raise
        return Workspace.open(settings.in_memory(), inline=True)
