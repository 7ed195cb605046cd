"""Compares the simulating kernel with the reference; started with ``TRITON_INTERPRET=1`` it runs on the CPU."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.quantize.op import BITS, RowBits, simulate, simulate_each

KINDS = ("normal", "outlier channels", "constant", "zero", "tiny", "huge", "shifted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tensor and how it is quantised."""

    shape: tuple[int, int, int, int]
    kind: str
    dtype: torch.dtype
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """For the reports of tests."""
        options = "-".join(str(value).removeprefix("torch.") for value in self.options.values())
        return f"{'x'.join(map(str, self.shape))}-{self.kind}-{str(self.dtype).removeprefix('torch.')}-{options}"

    def values(self) -> Tensor:
        """``[B, H, T, D]`` on the CPU, rows in the order of a model's projections: heads after tokens."""
        batch, heads, tokens, dim = self.shape
        x = torch.randn((batch, tokens, heads, dim), generator=torch.Generator().manual_seed(tokens))
        x = x.transpose(1, 2).double()
        limit = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        x[..., :: max(2, dim // 3)] *= 60.0 if self.kind == "outlier channels" else 1.0
        x[:, :, tokens // 2 :] = -3.3 if self.kind == "constant" else x[:, :, tokens // 2 :]
        scale = {"zero": 0.0, "tiny": 1e-9, "huge": limit}.get(self.kind, 1.0)
        return (x * scale + (300.0 if self.kind == "shifted" else 0.0)).clamp(-limit, limit).to(self.dtype)


def cases() -> Iterator[Case]:
    """Every kind of values under a few of all combinations of the rest."""
    shapes = (
        ((1, 2, 33, 64), (("token", 64), ("token", 16))),
        ((2, 3, 96, 80), (("token", 80), ("token", 16), ("channel", 32), ("channel", 96))),
        ((2, 1, 64, 256), (("token", 32), ("channel", 16))),
        ((3, 2, 5, 7), (("token", 7), ("token", 1), ("channel", 5))),
        ((1, 8, 1, 128), (("token", 128), ("channel", 1))),
        ((2, 2, 0, 64), (("token", 64), ("channel", 32))),
    )
    wholes = [(shape, how) for shape, hows in shapes for how in hows]
    rest = itertools.cycle(
        itertools.product(
            (torch.float32, torch.bfloat16, torch.float16, torch.float64), (False, True), (torch.float16, torch.float32)
        )
    )
    for kind, (shape, (granularity, group)) in itertools.product(KINDS, wholes):
        dtype, symmetric, scale_dtype = next(rest)
        options = {
            "granularity": granularity,
            "group_size": group,
            "symmetric": symmetric,
            "scale_dtype": scale_dtype,
        }
        yield Case(shape=shape, kind=kind, dtype=dtype, options=options)


def differences(case: Case, device: str) -> list[str]:
    """What the kernel gives in another bit than the reference on the CPU, at one width and at several."""
    found, x = [], case.values()
    there = x.to(device)
    for bits in BITS:
        mine = simulate(there, bits=bits, **case.options, implementation="triton")
        if not torch.equal(mine.cpu(), simulate(x, bits=bits, **case.options, implementation="reference")):
            found.append(f"{case.name} {bits} bits")
    batch, heads = case.shape[:2]
    for columns in {1, heads}:
        widths = torch.tensor([(16, *BITS)[index % 5] for index in range(3, 3 + batch * columns)], dtype=torch.uint8)
        rows = RowBits(bits=widths.view(batch, columns, 1, 1), widths=BITS)
        moved = RowBits(bits=rows.bits.to(device), widths=BITS)
        mine = simulate_each(there, bits=moved, **case.options, implementation="triton")
        if not torch.equal(mine.cpu(), simulate_each(x, bits=rows, **case.options, implementation="reference")):
            found.append(f"{case.name} {widths.tolist()}")
    return found


def main() -> None:
    """On the CPU; the interpreter does not round to bfloat16 as a GPU does."""
    torch.use_deterministic_algorithms(True)
    some = [case for case in cases() if case.dtype != torch.bfloat16]
    sys.exit("\n".join(line for case in some for line in differences(case, "cpu")) or 0)


if __name__ == "__main__":
    main()
