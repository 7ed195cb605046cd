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
from torch.autograd import forward_ad
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
    if not (hastens() and _suits(states, weight, bias)):
        return functional.linear(states, weight, bias)
    return _differentiable(states, weight, bias)


def hasten(model: nn.Module) -> None:
    """Let the linear layers of a model on a CPU use `linear`, where that is faster; they stay the same in all else."""
    if not hastens():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = HastenedLinear


def is_linear(module: object) -> bool:
    """Whether a module is a plain linear layer, hastened or not; what else is made of one may compute anything."""
    return type(module) in (nn.Linear, HastenedLinear)


class HastenedLinear(nn.Linear):
    """A linear layer whose product is `linear`'s."""

    def forward(self, input: Tensor) -> Tensor:
        """See `linear`."""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """`_product` with gradients, which are products of the same kind and have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `linear`."""
        # As torch's own: what no gradient is made of is neither kept alive nor held to its values.
        to_states, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(states if to_weight else None, weight if to_states else None)
        return _product(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to states, weight and bias, as far as they are wanted."""
        states, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        _, _, to_bias = ctx.needs_input_grad
        return (
            None if weight is None else _differentiable(gradient, weight.t()),
            None if states is None else _differentiable(flat.t(), states.reshape(-1, states.shape[-1]).t()),
            flat.sum(0) if to_bias else None,
        )


def _differentiable(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    tensors = (states, weight) if bias is None else (states, weight, bias)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return _product(states, weight, bias)
    product: Tensor = _Product.apply(states, weight, bias)  # type: ignore[no-untyped-call]
    return product


def _product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _suits(states: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's operator takes them, and means by them what torch does."""
    tensors = (states, weight) if bias is None else (states, weight, bias)
    return (
        all(map(_is_plain, tensors))
        and not (torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active())
        and states.numel() > 0
        and states.shape[-1:] == weight.shape[1:]
        and weight.is_contiguous()
        # Of a bias it reads neighbouring numbers, whatever its strides.
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a float32 matrix, or vector, in memory, not one with a tangent beside it."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
    )
