"""Parses the command line, runs the command, and turns what fails into one line and an exit code."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from kvtuner_core import __version__
from kvtuner_core.cli import policies, running, solvers, stored, studies, tasks
from kvtuner_core.cli.options import Parser
from kvtuner_core.cli.output import Output
from kvtuner_core.errors import InputError, KVTunerError

FAILURE = 1
BAD_USAGE = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="kvtuner_core",
        description="How many bits should each layer's keys and values get? Measures a live model, searches, and "
        "hands over a policy file.",
        epilog="Exit code 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C. Errors are one line on stderr.",
    )
    parser.add_argument("--version", action="version", version=f"kvtuner {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    stored.add_commands(commands)
    studies.add_commands(commands)
    solvers.add_commands(commands)
    policies.add_commands(commands)
    running.add_commands(commands)
    tasks.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: The arguments, by default those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows what it cannot write as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        out = Output(stdout=sys.stdout, stderr=sys.stderr, as_json=args.json)
        # Whatever a library prints must not end up in the document.
        with contextlib.redirect_stdout(sys.stderr):
            args.command(args, out)
    except BrokenPipeError:
        # The reader of our output left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        return _fail("Stopped. Everything finished so far is kept; the same command goes on from there.", INTERRUPTED)
    except KVTunerError as error:
        return _fail(str(error), BAD_USAGE if isinstance(error, InputError) else FAILURE)
    # The last resort: a person at a terminal gets a line, and a traceback only where asked for.
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        return _fail(f"Unexpected failure, {type(error).__name__}: {error} (where: python -X dev)", FAILURE)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return code
