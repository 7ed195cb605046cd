"""Runs the plain twin on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from kernels.decode_attention import triton_impl
from kernels.decode_attention.op import decode_attention
from tests.kernels.decode_attention.cases import SMALL, TOLERANCE, error, make
from tests.kernels.decode_attention.neighbours import wrong


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    # with many processors the merge deals a row's channels out
    for places, shapes in ((1, SMALL), (132, SMALL[::3])):
        triton_impl.processors = lambda _, places=places: places
        for shape in shapes:
            case = make(shape)
            sides = {"values": case.values, "visible": case.visible, "recent": case.recent}
            out = decode_attention(case.query, case.keys, **sides, implementation="triton")
            off = error(out, case.expected)
            if not off < TOLERANCE[shape.dtype]:
                failed.append(f"{shape.name} on {places}: {off:.1e}")
        failed += wrong("cpu")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
