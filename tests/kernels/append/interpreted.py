"""Runs the kernels on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

from tests.kernels.append.cases import SMALL, differences, fill, history


def main() -> None:
    failed = []
    for shape in SMALL:
        both = history(shape)
        wrong = differences(fill(shape, both, implementation="triton"), fill(shape, both))
        if any(wrong):
            failed.append(f"{shape.name}: {wrong}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
