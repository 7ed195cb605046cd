"""Runs the kernels on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from kernels.exact_attention.op import append_exact, exact_attention
from tests.kernels.exact_attention.cases import SMALL, TOLERANCE, error, make


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    for shape in SMALL:
        case = make(shape)
        out = exact_attention(
            case.query,
            case.keys,
            values=case.values,
            first=case.first,
            last=case.last,
            ring=case.ring,
            implementation="triton",
        )
        off = error(out, case.expected)
        if not off < TOLERANCE[shape.dtype]:
            failed.append(f"{shape.name}: {off:.1e}")
    for count, begin in ((1, 5), (3, 8), (9, 3)):
        held = [torch.zeros(2, 3, 10, 24) for _ in range(4)]
        new = tuple(torch.randn(2, count, 3, 24).transpose(1, 2) for _ in range(2))
        progress = torch.tensor([begin, 0, 0, 0], dtype=torch.int32)
        append_exact(held[0], held[1], new=new, progress=progress, implementation="triton")
        append_exact(held[2], held[3], new=new, progress=progress, implementation="reference")
        if not (torch.equal(held[0], held[2]) and torch.equal(held[1], held[3])):
            failed.append(f"append of {count} at {begin}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
