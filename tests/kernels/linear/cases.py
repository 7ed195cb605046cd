"""Products and what they must give, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.linear.op import gated_linear, linear

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``rows`` times a weight of ``outer`` rows of ``inner``."""

    rows: int = 3
    outer: int = 192
    inner: int = 256
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """A readable id."""
        return f"{self.rows}x{self.outer}x{self.inner}-{str(self.dtype).removeprefix('torch.')}"


SMALL = (Shape(), Shape(rows=1, outer=70, inner=80), Shape(rows=17, outer=128, inner=392))


def make(shape: Shape, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ``x`` and weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.rows, shape.inner, generator=generator)
    weight = torch.randn(shape.outer, shape.inner, generator=generator) * shape.inner**-0.5
    return x.to(shape.dtype), weight.to(shape.dtype)


def errors(x: Tensor, weight: Tensor, implementation: str) -> dict[str, float]:
    """Relative errors by norms of everything the op offers, against float64."""
    expected = nn.functional.linear(x.cpu().double(), weight.cpu().double())
    found = {
        "parts": _off(linear(x, weight, implementation=implementation).double().sum(0), expected),
        "whole": _off(linear(x, weight, whole=True, implementation=implementation)[0], expected),
    }
    gate, up = expected.chunk(2, dim=-1)
    for name, act in (("silu", nn.functional.silu(gate)), ("gelu_tanh", nn.functional.gelu(gate, approximate="tanh"))):
        made = gated_linear(x, weight, activation=name, implementation=implementation)
        found[name] = _off(made, act * up)
    return found


def _off(found: Tensor, expected: Tensor) -> float:
    found = found.cpu().double()
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())
