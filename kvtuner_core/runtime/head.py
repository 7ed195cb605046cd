"""The last matrix of the model, in float32 and without a new gigabyte for every pass."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvtuner_core.runtime.interception import decoder_of
from kvtuner_core.runtime.products import PACKED_COLUMNS, HastenedLinear, hastens, is_linear, linear, product

_ROWS = 512
_GRADIENT_VALUES = 1 << 25
_BLOCK_VALUES = 1 << 19


class Head:
    """Turns hidden states into logits, as the model itself would in float32.

    Vocabularies are large: the product is made in chunks that stay in the processor's cache, into
    one buffer that is used again, which halves its time on a CPU; and a bfloat16 model's logits
    keep the digits that its own rounding would drop, so that small divergences are not lost in it.

    Args:
        weight: ``[V, hidden]``.
        bias: ``[V]``, or ``None``.
        layer: The layer whose they are, which may have packed the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, layer: nn.Module | None = None) -> None:
        self._weight = weight
        self._bias = bias
        self._layer = layer
        self._buffer = torch.empty((0, weight.shape[0]))

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head | None":
        """The model's head, or ``None`` where its logits are more than one linear layer (a soft cap)."""
        layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not is_linear(layer):
            return None
        head = cls(layer.weight, layer.bias, layer=layer)
        ids = torch.arange(1, 4, device=model.device)[None]
        with torch.inference_mode():
            mine = head.logits(final_states(model, input_ids=ids)[0])
            own = model(input_ids=ids, use_cache=False).logits[0].to(mine.dtype)
            close = torch.allclose(own, mine, rtol=0, atol=0.02 * float(own.abs().amax()))
        return head if close else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of ``hidden`` ``[N, hidden]``, at least float32; valid until the next call."""
        if hidden.is_cuda and hidden.dtype == self._weight.dtype and hidden.dtype.itemsize == 2:
            # Products of 16-bit numbers are exact in float32, where the tensor cores add them up.
            logits: Tensor = torch.mm(hidden, self._weight.t(), out_dtype=torch.float32)
            return logits if self._bias is None else logits.add_(self._bias)
        exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        rows, vocabulary = exact.shape[0], self._weight.shape[0]
        buffer = self._buffer
        if buffer.shape[0] < rows or buffer.dtype != exact.dtype or buffer.device != exact.device:
            buffer = self._buffer = exact.new_empty((rows, vocabulary))
        logits = buffer[:rows]
        faster = _is_faster(exact)
        step = _ROWS if faster else max(1, rows)
        packed = self._layer.packed_parts() if isinstance(self._layer, HastenedLinear) else ()
        for first, start in itertools.product(range(0, rows, step), range(0, vocabulary, PACKED_COLUMNS)):
            some, part = slice(first, first + step), slice(start, start + PACKED_COLUMNS)
            weight = self._weight[part].to(exact.dtype)
            if faster:
                own = packed[start // PACKED_COLUMNS] if len(packed) > 1 else None
                logits[some, part] = linear(exact[some], weight, packed=own)
            else:
                torch.mm(exact[some], weight.t(), out=logits[some, part])
        return logits if self._bias is None else logits.add_(self._bias)

    def loss_gradient(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Gradient ``[N, hidden]`` of the summed cross-entropy with ``labels`` ``[N]`` with respect to ``hidden``.

        Logits become their own gradient in place, some rows at a time: neither is ever held whole.

        Args:
            hidden: Final states ``[N, hidden]``, whatever graph they have.
            labels: The token that each of them should predict.
        """
        vocabulary = self._weight.shape[0]
        step, block = max(1, _GRADIENT_VALUES // vocabulary), max(1, _BLOCK_VALUES // vocabulary)
        found = torch.empty_like(hidden, requires_grad=False)
        # The buffer is made in inference mode by whoever comes first, and could not be written to outside of it.
        with torch.inference_mode():
            pieces = zip(*(torch.split(tensor, step) for tensor in (found, hidden.detach(), labels)), strict=True)
            for gradient, states, wanted in pieces:
                slopes = self.logits(states)
                # Blocks that stay in the processor's cache.
                for part, own in zip(torch.split(slopes, block), torch.split(wanted, block), strict=True):
                    part.copy_(part.softmax(-1))
                    part.scatter_add_(1, own[:, None], part.new_full((len(own), 1), -1))
                weight = self._weight.to(slopes.dtype)
                gradient.copy_(product(slopes, weight.t()) if _is_faster(slopes) else slopes @ weight)
        return found


def _is_faster(states: Tensor) -> bool:
    """Whether products of them are left to oneDNN."""
    return hastens() and states.device.type == "cpu" and states.dtype == torch.float32


def final_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """The decoder's last hidden states ``[B, T, hidden]``, without logits or cache."""
    states: Tensor = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    return states
