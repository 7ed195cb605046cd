"""Calls that differ from one another in one thing, so that what is planned for one is wrong for the next."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kernels.decode_attention.op import decode_attention
from tests.kernels.decode_attention.cases import TOLERANCE, Case, Shape, error, make, moved

BASE = Shape(k_bits=4, v_bits=4, head_dim=64, tokens=200, group=2, recent=5)
SHAPES = (
    BASE,
    replace(BASE, k_bits=8),
    replace(BASE, v_bits=2),
    replace(BASE, channel=True),
    replace(BASE, v_group=32),
    replace(BASE, cuts=(1,)),
    replace(BASE, cuts=(2,)),
    replace(BASE, ring=4, sliding=100),
    replace(BASE, tokens=130),
    replace(BASE, queries=2),
    replace(BASE, group=4),
    replace(BASE, batch=1),
    replace(BASE, recent=7),
    replace(BASE, recent=0),
    replace(BASE, dtype=torch.bfloat16),
)


def spaced(x: Tensor) -> Tensor:
    """``x`` with as much room behind each token as it takes."""
    return torch.cat((x, torch.full_like(x, torch.nan)), dim=3)[..., : x.shape[3]]


def turned(x: Tensor) -> Tensor:
    """``x`` with the tokens of a place beside one another, head after head."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def wrong(device: str) -> list[str]:
    """Calls of the kernels that are not what is expected, of all made twice in one order and once in the other."""
    calls: list[tuple[str, Case, float | None]] = [(shape.name, make(shape), None) for shape in SHAPES]
    _, case, _ = calls[0]
    assert case.recent is not None
    layouts: tuple[Callable[[Tensor], Tensor], ...] = (spaced, turned)
    for change in layouts:
        keys = replace(case.recent, keys=change(case.recent.keys))
        values = replace(case.recent, values=change(case.recent.values))
        calls.append((f"{change.__name__} keys", replace(case, recent=keys), None))
        calls.append((f"{change.__name__} values", replace(case, recent=values), None))
        calls.append((f"{change.__name__} query", replace(case, query=change(case.query)), None))
    calls.append(("bounded", replace(case, visible=replace(case.visible, max_tokens=BASE.tokens)), None))
    calls += [(f"scale {scale!r}", case, scale) for scale in (1, 1.0, 0.25)]
    return [
        f"{name} in turn {turn}: {off:.1e}"
        for turn, order in enumerate((calls, calls, calls[::-1]))
        for name, one, scale in order
        if not (off := _off(one, scale, device)) < TOLERANCE[one.query.dtype]
    ]


def _off(case: Case, scale: float | None, device: str) -> float:
    if scale is not None:
        wide = replace(case, query=case.query.float())
        case = replace(case, expected=_attend(wide, scale, "reference").double())
    return error(_attend(moved(case, device), scale, "triton"), case.expected)


def _attend(case: Case, scale: float | None, implementation: Literal["reference", "triton"]) -> Tensor:
    sides = {"values": case.values, "visible": case.visible, "recent": case.recent}
    return decode_attention(case.query, case.keys, **sides, scale=scale, implementation=implementation)
