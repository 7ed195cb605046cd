"""Runs the kernel on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from tests.kernels.rotary.cases import SMALL, TOLERANCE, make


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    for shape in SMALL:
        off = make(shape).off("cpu", "triton")
        if not off < TOLERANCE[shape.dtype]:
            failed.append(f"{shape.name}: {off}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
