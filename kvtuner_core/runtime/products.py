"""Products of float32 matrices on a CPU, by the faster of the two libraries that come with torch.

torch gives them to MKL, which uses vectors of 512 bits on Intel's processors only; on others that have them
oneDNN takes half the time, at the same precision. torch uses oneDNN for 16-bit numbers and convolutions
by itself, and for linear layers that it compiles; here it is asked by the operator that those use.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_WIDE = "AVX512"
_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def hastens() -> bool:
    """Whether oneDNN is the faster one here: a processor with wide vectors that is not Intel's."""
    libraries: tuple[Any, ...] = (torch.backends.mkl, torch.backends.mkldnn)
    there = all(library.is_available() for library in libraries) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not (there and torch.backends.cpu.get_cpu_capability() == _WIDE):
        return False
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    vendors = {line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")}
    return bool(vendors) and "GenuineIntel" not in vendors


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias``, as `torch.nn.functional.linear`, to the rounding of float32.

    Args:
        states: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``, or ``None``.
    """
    if not (hastens() and _suits(states, weight)):
        return functional.linear(states, weight, bias)
    wanted = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (states, weight, bias)
    )
    if not wanted:
        return _product(states, weight, bias)
    product: Tensor = _Product.apply(states, weight, bias)  # type: ignore[no-untyped-call]
    return product


def hasten(model: nn.Module) -> None:
    """Let the linear layers of a model on a CPU use `linear`; they stay linear layers in all else."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = HastenedLinear


class HastenedLinear(nn.Linear):
    """A linear layer whose product is `linear`'s."""

    def forward(self, input: Tensor) -> Tensor:
        """See `linear`."""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """`_product` with gradients, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `linear`."""
        ctx.save_for_backward(states, weight)
        return _product(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to states, weight and bias, as far as they are wanted."""
        states, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, weight.shape[0])
        to_states, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if to_states else None,
            _product(flat.t(), states.reshape(-1, weight.shape[1]).t()) if to_weight else None,
            flat.sum(0) if to_bias else None,
        )


def _product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _suits(states: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operator takes them."""
    both = (states, weight)
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in both)
        and weight.is_contiguous()
        and states.numel() > 0
    )
