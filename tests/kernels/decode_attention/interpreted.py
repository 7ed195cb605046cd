"""Runs the plain twin on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from kernels.decode_attention.op import decode_attention
from tests.kernels.decode_attention.cases import SMALL, TOLERANCE, error, make


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    for shape in SMALL:
        case = make(shape)
        out = decode_attention(
            case.query, case.keys, values=case.values, visible=case.visible, recent=case.recent, implementation="triton"
        )
        off = error(out, case.expected)
        if not off < TOLERANCE[shape.dtype]:
            failed.append(f"{shape.name}: {off:.1e}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
