"""Which bit width each policy of a pass reads of each layer, as numbers on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.runtime.bank import WIDTHS, Choice, Side

_SIDES = (Side.KEY, Side.VALUE)


@dataclass(slots=True, kw_only=True, eq=False)
class Choices:
    """The widths of all layers under the policies of a pass, each the same for all KV heads.

    Attributes:
        places: ``[layers, 2, policies]``, places in `bank.WIDTHS`; keys, then values.
        bits: ``[layers, 2, policies * R]``, the width of each row of the pass.
        widths: Of each layer and side the quantised widths that may occur, ascending.
    """

    places: Tensor
    bits: Tensor
    widths: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def of(cls, policies: Sequence[Sequence[LayerPrecision]], *, rows: int, device: torch.device) -> "Choices | None":
        """The widths of some policies, or ``None`` where one of them has other bits per KV head.

        Args:
            policies: One precision per cached layer, for each policy.
            rows: Rows of the pass for each of them.
            device: Where the model is.
        """
        if any(layer.heads for policy in policies for layer in policy):
            return None
        pairs = [[(layer.pair.key_bits, layer.pair.value_bits) for layer in policy] for policy in policies]
        bits = np.array(pairs, dtype=np.uint8).transpose(1, 2, 0)
        places = np.zeros(bits.shape, dtype=np.int64)
        for place, width in enumerate(WIDTHS):
            places[bits == width] = place
        widths = tuple((_quantised(keys), _quantised(values)) for keys, values in bits)
        return cls(
            places=_sent(torch.from_numpy(places), device),
            bits=_sent(torch.from_numpy(bits.repeat(rows, axis=2)), device),
            widths=widths,
        )

    def at(self, layer: int, side: Side) -> Choice:
        """Those of one layer's keys or values."""
        index = _SIDES.index(side)
        return Choice(
            places=self.places[layer, index],
            bits=self.bits[layer, index, :, None, None, None],
            widths=self.widths[layer][index],
        )


def _quantised(bits: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted({int(width) for width in np.unique(bits)} - {FULL_BITS}))


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers on the device, which is not waited for."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
