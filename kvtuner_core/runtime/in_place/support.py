"""Which layers the fused kernels can hold, and whether they are wanted."""

import os
from enum import StrEnum

import torch

from kernels.decode_attention import op as decode
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import Granularity, QuantScheme, Rotation, ScaleDtype
from kvtuner_core.errors import InputError

VARIABLE = "KVTUNER_KERNELS"
"""Environment variable that overrides the choice of kernels."""


class Kernels(StrEnum):
    """How a cache is held and read.

    ``REFERENCE``: plain tensors of exactly the size of what they hold, dequantised for each step.
    ``TRITON``: preallocated buffers that fused kernels fill and attend to in place.
    """

    REFERENCE = "reference"
    TRITON = "triton"


def chosen_kernels(device: torch.device) -> Kernels:
    """What ``KVTUNER_KERNELS`` says, else the fused kernels on CUDA and the reference elsewhere.

    Raises:
        InputError: If the variable has another value, or asks for Triton without a CUDA device.
    """
    wanted = os.environ.get(VARIABLE, "").strip().lower()
    if not wanted:
        return Kernels.TRITON if device.type == "cuda" else Kernels.REFERENCE
    if wanted not in tuple(Kernels):
        raise InputError(f"{VARIABLE} must be reference or triton; got {wanted!r}. Leave it unset to let us choose.")
    if wanted == Kernels.TRITON and device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        raise InputError(f"{VARIABLE}=triton needs a model on a CUDA device; got one on {device.type}. Unset it.")
    return Kernels(wanted)


def unsupported(geometry: LayerGeometry, precision: LayerPrecision, scheme: QuantScheme) -> str | None:
    """Why the fused kernels cannot hold a layer, in words that follow "because"; ``None`` if they can."""
    if geometry.key_dim != geometry.value_dim:
        return f"its keys have {geometry.key_dim} values a head and its values {geometry.value_dim}"
    pairs = precision.heads or (precision.pair,)
    reasons = (_pair_reason(pair, geometry.key_dim, scheme) for pair in dict.fromkeys(pairs))
    return next((reason for reason in reasons if reason), None)


def _pair_reason(pair: PrecisionPair, head_dim: int, scheme: QuantScheme) -> str | None:
    if pair.is_full:
        return None
    return _scheme_reason(scheme) or _layout_reason(pair, head_dim, scheme)


def _scheme_reason(scheme: QuantScheme) -> str | None:
    channel = scheme.has_channel_groups
    rules = (
        (scheme.rotation is not Rotation.NONE, "its codes are rotated"),
        (scheme.residual_share > 0, "its full-precision window grows with the context"),
        (scheme.symmetric, "its codes are symmetric"),
        (scheme.scale_dtype is not ScaleDtype.FLOAT16, f"its scales are {scheme.scale_dtype.value}"),
        (scheme.value_granularity is Granularity.CHANNEL, "its values are grouped per channel"),
        (
            channel and scheme.flush_tokens != decode.CHANNEL_GROUP,
            f"its channel groups have {scheme.flush_tokens} tokens, not {decode.CHANNEL_GROUP}",
        ),
    )
    return next((reason for broken, reason in rules if broken), None)


def _layout_reason(pair: PrecisionPair, head_dim: int, scheme: QuantScheme) -> str | None:
    per_token = scheme.key_granularity is Granularity.TOKEN
    return decode.supported(
        head_dim,
        key_bits=pair.key_bits,
        value_bits=pair.value_bits,
        key_granularity="token" if per_token else "channel",
        key_group=scheme.token_group(head_dim) if per_token else None,
        value_group=scheme.token_group(head_dim),
    )
