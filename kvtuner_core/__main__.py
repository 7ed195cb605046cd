"""``python -m kvtuner_core``: the use cases from a terminal."""

import sys

from kvtuner_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
