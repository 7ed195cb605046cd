"""Merges weights of linear layers that read the same input, without holding them twice."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def merged(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight for all ``layers``, whose own parameters become parts of it.

    The parameters stay what they are to everybody else: the same objects with the same values, trained,
    saved and moved one by one. If they are moved, the next call merges them again. For as long as one
    call takes, the weights of these layers alone are held twice.

    Args:
        layers: Linear layers of one input size and dtype, all with a bias or none.

    Returns:
        Weight ``[sum of N, K]``, and bias ``[sum of N]`` or ``None``.
    """
    weight = _joined([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return weight, _joined(biases) if biases else None


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    first = parameters[0].detach()
    if not _is_joined(parameters):
        # Also inside of inference mode the parameters must stay usable outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            whole = torch.cat([parameter.detach() for parameter in parameters])
            begin = 0
            for parameter in parameters:
                end = begin + parameter.shape[0]
                parameter.data = whole[begin:end]
                begin = end
        return whole
    rows = sum(parameter.shape[0] for parameter in parameters)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _is_joined(parameters: Sequence[Tensor]) -> bool:
    """Whether the parameters lie one behind the other in one storage."""
    place = parameters[0].data_ptr()
    storage = parameters[0].untyped_storage().data_ptr()
    for parameter in parameters:
        if (
            parameter.data_ptr() != place
            or parameter.untyped_storage().data_ptr() != storage
            or not parameter.is_contiguous()
        ):
            return False
        place += parameter.nbytes
    return True
