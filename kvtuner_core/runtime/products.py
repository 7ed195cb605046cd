"""Products of float32 matrices on a CPU, by the faster of the two libraries that come with torch.

torch gives them to MKL, which uses vectors of 512 bits on Intel's processors only; on others that have them
oneDNN takes half the time, at the same precision. torch uses oneDNN for 16-bit numbers and convolutions
by itself, and for linear layers that it compiles; here it is asked by the operator that those use. Weights that
stay are also kept in the order in which oneDNN reads them: it would else put them into it in every product, which
gives the same numbers bit for bit.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from kvtuner_core.runtime.provenance import device_memory

PACKED_COLUMNS = 2048
"""Outputs of a wide layer that are packed, and multiplied, together: so many results stay in the processor's cache."""

_WIDE = "AVX512"
_ONE_PIECE = 8 * PACKED_COLUMNS
_PACKED_SHARE = 0.25
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


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None, *, packed: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias``, as `torch.nn.functional.linear`, to the rounding of float32.

    Args:
        states: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``, or ``None``.
        packed: What `packed` made of the weight, where it is at hand.
    """
    if not (hastens() and _suits(states, weight, bias)):
        return functional.linear(states, weight, bias)
    return _differentiable(states, weight, bias, packed)


def packed(weight: Tensor) -> Tensor:
    """A copy of a float32 ``weight`` ``[out, in]`` in oneDNN's own order, as many bytes; for `linear` alone to read."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return copy


def hasten(model: nn.Module) -> None:
    """Let the linear layers of a model on a CPU use `linear`, where that is faster; they stay the same in all else.

    Their weights are packed where that takes no more than a quarter of the memory that is free. What is then written
    into a weight past autograd, through ``weight.data`` or NumPy, goes unseen: hasten the model again.
    """
    if not hastens():
        return
    for module in model.modules():
        if is_linear(module):
            module.__class__ = HastenedLinear
    layers = [module for module in model.modules() if isinstance(module, HastenedLinear)]
    weights = {id(layer.weight): layer.weight.nbytes for layer in layers}
    free, _ = device_memory(torch.device("cpu"))
    if sum(weights.values()) <= _PACKED_SHARE * free:
        for layer in layers:
            if _can_be_packed(layer.weight):
                layer.pack()


def is_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain linear layer, hastened or not; what else is made of one may compute anything."""
    return type(module) in (nn.Linear, HastenedLinear)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Packed:
    """A weight as oneDNN reads it.

    Attributes:
        weight: Which one.
        values: What it held, which keeps their place from being given to others.
        version: How often it had been changed when it was packed.
        parts: All its rows, or `PACKED_COLUMNS` at a time.
    """

    weight: Tensor
    values: Tensor
    version: int
    parts: tuple[Tensor, ...]


class HastenedLinear(nn.Linear):
    """A linear layer whose product is `linear`'s; what is packed of its weight goes when that is changed or moved."""

    _packed: _Packed | None = None

    def pack(self) -> None:
        """Keep the weight as oneDNN reads it, too; that of a wide layer in parts, for a head to read."""
        wide = self.out_features > _ONE_PIECE
        parts = torch.split(self.weight, PACKED_COLUMNS) if wide else (self.weight,)
        self._packed = _Packed(
            weight=self.weight,
            values=self.weight.detach(),
            version=self.weight._version,
            parts=tuple(packed(part) for part in parts),
        )

    def _is_as_packed(self, known: _Packed) -> bool:
        """Whether the weight is the one that was packed, unchanged as far as torch counts, and at the same place."""
        weight = self.weight
        return (
            known.weight is weight and known.version == weight._version and known.values.data_ptr() == weight.data_ptr()
        )

    def packed_parts(self) -> tuple[Tensor, ...]:
        """What is packed of the weight as it is now; empty where it is not, or was changed since."""
        known = self._packed
        if known is None:
            return ()
        if not self._is_as_packed(known):
            self._packed = None
            return ()
        return known.parts

    def forward(self, input: Tensor) -> Tensor:
        """See `linear`."""
        parts = self.packed_parts()
        return linear(input, self.weight, self.bias, packed=parts[0] if len(parts) == 1 else None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs nothing: its weight may become another, and oneDNN's order is that of this processor."""
        return {name: value for name, value in super().__getstate__().items() if name != "_packed"}  # type: ignore[no-untyped-call]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """`product` with gradients, which are products of the same kind and have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        """See `linear`."""
        # As torch's own: what no gradient is made of is neither kept alive nor held to its values.
        to_states, to_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(states if to_weight else None, weight if to_states else None)
        return product(states, weight if packed is None else packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients with respect to states, weight and bias, as far as they are wanted."""
        states, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        _, _, to_bias, _ = ctx.needs_input_grad
        return (
            None if weight is None else _differentiable(gradient, weight.t()),
            None if states is None else _differentiable(flat.t(), states.reshape(-1, states.shape[-1]).t()),
            flat.sum(0) if to_bias else None,
            None,
        )


def _differentiable(states: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    tensors = (states, weight) if bias is None else (states, weight, bias)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return product(states, weight if packed is None else packed, bias)
    found: Tensor = _Product.apply(states, weight, bias, packed)  # type: ignore[no-untyped-call]
    return found


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by oneDNN, without its checks and without a gradient; a transposed weight may be one, too."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


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


def _can_be_packed(weight: Tensor) -> bool:
    """Whether `linear` would read what is packed of it, and torch counts its changes."""
    return _is_plain(weight) and weight.numel() > 0 and weight.is_contiguous() and not weight.is_inference()


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a float32 matrix, or vector, in memory, not one with a tangent beside it."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
    )
