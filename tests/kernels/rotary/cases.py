"""Queries, keys and values as models compute them, step by step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from kernels.norm.op import Norm
from kernels.rotary.op import Heads, rotate

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Heads of one step."""

    batch: int = 2
    queries: int = 4
    keys: int = 2
    dim: int = 32
    parts: int = 2
    bias: bool = False
    norm: str | None = None
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """A readable id."""
        parts = [f"{self.batch}x{self.queries}+{self.keys}x{self.dim}x{self.parts}", str(self.norm or "plain")]
        return "-".join([*parts, *(["bias"] if self.bias else []), str(self.dtype).removeprefix("torch.")])


SMALL = (
    Shape(),
    Shape(batch=1, dim=80, bias=True, parts=1),
    Shape(queries=6, keys=1, dim=24, norm="gemma"),
    Shape(norm="llama"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Arguments, and queries, keys and values that models give."""

    parts: Tensor
    cos: Tensor
    sin: Tensor
    heads: Heads
    expected: tuple[Tensor, ...]

    def off(self, device: str, implementation: str) -> float:
        """The largest relative error by norms; infinite if anything is not finite."""
        parts, cos, sin = (x.to(device) for x in (self.parts, self.cos, self.sin))
        found = rotate(parts, cos, sin=sin, heads=_moved(self.heads, device), implementation=implementation)
        return max(_off(one, expected) for one, expected in zip(found, self.expected, strict=True))


def make(shape: Shape, *, seed: int = 0) -> Case:
    """Random heads at random positions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    width = (shape.queries + 2 * shape.keys) * shape.dim
    parts = draw(shape.parts, shape.batch, width)
    bias = draw(width).to(shape.dtype) if shape.bias else None
    angles = torch.rand(shape.batch, shape.dim // 2, generator=generator) * 6
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos().to(shape.dtype), angles.sin().to(shape.dtype)
    norms = [_module(draw(shape.dim), shape) for _ in range(2)]
    whole = (parts.double().sum(0) + (0 if bias is None else bias.double())).to(shape.dtype)
    heads = whole.view(shape.batch, -1, 1, shape.dim).split([shape.queries, shape.keys, shape.keys], dim=1)
    with torch.no_grad():
        q, k = (heads[i] if norms[i] is None else norms[i](heads[i]) for i in range(2))
        q, k = apply_rotary_pos_emb(q, k, cos[:, None], sin[:, None])
    query_norm, key_norm = (
        None if norm is None else Norm(weight=norm.weight.detach(), eps=1e-5, offset=shape.norm == "gemma")
        for norm in norms
    )
    return Case(
        parts=parts,
        cos=cos,
        sin=sin,
        heads=Heads(
            queries=shape.queries,
            keys=shape.keys,
            dim=shape.dim,
            bias=bias,
            query_norm=query_norm,
            key_norm=key_norm,
        ),
        expected=(q, k, heads[2]),
    )


def _module(weight: Tensor, shape: Shape) -> torch.nn.Module | None:
    if shape.norm is None:
        return None
    module = (Gemma3RMSNorm if shape.norm == "gemma" else LlamaRMSNorm)(shape.dim, eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module.to(shape.dtype)


def _moved(heads: Heads, device: str) -> Heads:
    norms = {
        name: None if norm is None else replace(norm, weight=norm.weight.to(device))
        for name, norm in (("query_norm", heads.query_norm), ("key_norm", heads.key_norm))
    }
    return replace(heads, bias=None if heads.bias is None else heads.bias.to(device), **norms)


def _off(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype or not found.is_contiguous():
        return float("inf")
    found, expected = found.cpu().double(), expected.double()
    return float((found - expected).norm() / expected.norm()) if bool(found.isfinite().all()) else float("inf")
