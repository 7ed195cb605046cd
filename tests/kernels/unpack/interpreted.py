"""Runs the kernel on the CPU; started with ``TRITON_INTERPRET=1`` by the tests, as Triton reads it at import."""

import sys

import torch

from kernels.unpack.op import dequantize
from tests.kernels.unpack.cases import SHAPES, fill


def main() -> None:
    torch.use_deterministic_algorithms(True)
    failed = []
    for shape in SHAPES[1::2]:
        filled = fill(shape)
        for sides, keys in ((filled.keys, True), (filled.values, False)):
            for begin, end in ((filled.oldest, shape.tokens), (filled.oldest + 37, shape.tokens - 5)):
                stretch = {"keys": keys, "begin": begin, "end": end, "dtype": torch.float32}
                found = dequantize(sides, **stretch, implementation="triton")
                if not torch.equal(found, dequantize(sides, **stretch, implementation="reference")):
                    failed.append(f"{shape.name} {begin} {end} {keys}")
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
