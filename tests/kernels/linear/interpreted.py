"""Runs the kernel on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from tests.kernels.linear.cases import SMALL, TOLERANCE, errors, make


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    for shape in SMALL:
        off = errors(*make(shape), "triton")
        if not all(value < TOLERANCE[shape.dtype] for value in off.values()):
            failed.append(f"{shape.name}: {off}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
