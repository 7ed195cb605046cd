"""Where a cache may stand, and what differs between two implementations there."""

from collections.abc import Iterator
from dataclasses import fields

import torch

from kernels.step_numbers.op import Places, StepNumbers, step_numbers

PLACES = (
    Places(sinks=0, residual=0, unit=1, ring=8, sliding=None),
    Places(sinks=3, residual=5, unit=1, ring=13, sliding=None),
    Places(sinks=0, residual=32, unit=32, ring=71, sliding=None),
    Places(sinks=0, residual=7, unit=32, ring=46, sliding=21),
)


def stands(places: Places) -> Iterator[tuple[int, int, int]]:
    """Tokens, packed store positions, and tokens of an update."""
    for tokens in (0, 1, 2, places.sinks, 31, 32, 70, 1000):
        for count in (1, 3):
            yield tokens, max(0, tokens - places.sinks - places.residual) // places.unit * places.unit, count


def numbers(places: Places, stand: tuple[int, int, int], *, device: str, implementation: str) -> StepNumbers:
    """The numbers of three sequences with padding."""
    tokens, packed, count = stand
    counters = torch.tensor([packed, tokens], dtype=torch.int32, device=device)
    padding = torch.tensor([0, 4, tokens // 2], dtype=torch.int32, device=device)
    return step_numbers(counters, padding, count=count, places=places, implementation=implementation)


def differing(one: StepNumbers, other: StepNumbers) -> list[str]:
    """Names of the fields that are not equal."""
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return [name for name, a, b in pairs if a.dtype != b.dtype or not torch.equal(a.cpu(), b.cpu())]
