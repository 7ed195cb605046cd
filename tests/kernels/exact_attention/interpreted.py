"""Runs the kernels on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from kernels.exact_attention.op import exact_attention
from tests.kernels.exact_attention.cases import APPENDS, SMALL, TOLERANCE, appended, error, make


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
    for cuts, count, begin, ring in APPENDS:
        keys, values, *wanted = appended(
            cuts, count=count, begin=begin, ring=ring, device="cpu", implementation="triton"
        )
        if not (torch.equal(keys, wanted[0]) and torch.equal(values, wanted[1])):
            failed.append(f"append of {count} at {begin}, segments at {cuts}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
