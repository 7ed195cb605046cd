"""Products with a weight in plain PyTorch: the definition."""

import torch
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, *, whole: bool = False) -> Tensor:
    """See `kernels.linear.op.linear`: one part, summed in float32 at least."""
    product = _product(x, weight)
    return product[None].to(x.dtype) if whole else product[None]


def gated_linear(x: Tensor, weight: Tensor, *, activation: str) -> Tensor:
    """See `kernels.linear.op.gated_linear`."""
    return gated(_product(x, weight).to(x.dtype), activation)


def gated(product: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` of a product ``[B, 2 N]`` that holds both."""
    gate, up = product.chunk(2, dim=-1)
    act = nn.functional.silu(gate) if activation == "silu" else nn.functional.gelu(gate, approximate="tanh")
    return act * up


def _product(x: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return nn.functional.linear(x.to(wide), weight.to(wide))
