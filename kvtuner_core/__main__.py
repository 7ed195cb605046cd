"""``python -m kvtuner_core``: the use cases from a terminal."""

import sys


def run() -> int:
    """Import and run the command line; returns the exit code. Ctrl-C is one line from the first moment on."""
    try:
        from kvtuner_core.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("error: Stopped before anything began.\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
