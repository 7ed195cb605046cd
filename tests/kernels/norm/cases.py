"""Sums and norms as models compute them, step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kernels.norm.op import Norm, add_norm

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``rows`` of ``width``; ``parts`` is 0 for a norm alone."""

    rows: int = 3
    width: int = 128
    parts: int = 2
    bias: bool = False
    inner: bool = False
    offset: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """A readable id."""
        flags = [flag for flag in ("bias", "inner", "offset") if getattr(self, flag)]
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([f"{self.rows}x{self.width}x{self.parts}", *flags, dtype])


SMALL = (
    Shape(),
    Shape(width=100, bias=True),
    Shape(rows=1, parts=0),
    Shape(inner=True, offset=True, width=80),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Arguments, and the sum and norm that the models' own modules give."""

    hidden: Tensor
    parts: Tensor | None
    bias: Tensor | None
    norm: Norm
    inner: Norm | None
    expected: tuple[Tensor, Tensor]

    def off(self, device: str, implementation: str) -> tuple[float, float]:
        """Relative errors by norms of sum and norm; infinite if anything is not finite."""
        found = add_norm(
            self.hidden.to(device),
            None if self.parts is None else self.parts.to(device),
            norm=_moved(self.norm, device),
            bias=None if self.bias is None else self.bias.to(device),
            inner=None if self.inner is None else _moved(self.inner, device),
            implementation=implementation,
        )
        errors = [_off(one, expected) for one, expected in zip(found, self.expected, strict=True)]
        return errors[0], errors[1]


def make(shape: Shape, *, seed: int = 0) -> Case:
    """Random rows with an outlier channel, as residual streams have them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    hidden = draw(shape.rows, shape.width)
    hidden[:, 3] += 50
    hidden = hidden.to(shape.dtype)
    parts = draw(shape.parts, shape.rows, shape.width) if shape.parts else None
    bias = draw(shape.width).to(shape.dtype) if shape.bias else None
    module, inner = (_module(draw(shape.width), shape) for _ in range(2))
    with torch.no_grad():
        total = hidden
        if parts is not None:
            made = (parts.double().sum(0) + (0 if bias is None else bias.double())).to(shape.dtype)
            total = hidden + (inner(made) if shape.inner else made)
        expected = (total, module(total))
    return Case(
        hidden=hidden,
        parts=parts,
        bias=bias,
        norm=_norm(module, shape),
        inner=_norm(inner, shape) if shape.inner else None,
        expected=expected,
    )


def _module(weight: Tensor, shape: Shape) -> torch.nn.Module:
    module = Gemma3RMSNorm(shape.width, eps=1e-5) if shape.offset else LlamaRMSNorm(shape.width, eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module.to(shape.dtype)


def _norm(module: torch.nn.Module, shape: Shape) -> Norm:
    return Norm(weight=module.weight.detach(), eps=1e-5, offset=shape.offset)


def _moved(norm: Norm, device: str) -> Norm:
    return Norm(weight=norm.weight.to(device), eps=norm.eps, offset=norm.offset)


def _off(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    found, expected = found.cpu().double(), expected.double()
    return float((found - expected).norm() / expected.norm()) if bool(found.isfinite().all()) else float("inf")
