"""One token of each sequence through a model, by a few fused operations a layer."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernels.linear.op import gated_linear, linear
from kernels.norm.op import add_norm
from kernels.rotary.op import rotate
from kvtuner_core.runtime.fused.structure import Block, structure_of
from kvtuner_core.runtime.interception import eager_attention


class FusedStep:
    """A decode step of a model, with the same cache and the same attention, through fused operations.

    A layer is: the products with merged weights, bias and rotary embedding in one pass, the cache's
    update and the attention that the model is set to, and twice the sum of the residual stream and
    its norm in one pass. Results are rounded where the model rounds its own; they differ from its
    own by the order of sums.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Check and prepare ``model``.

        Raises:
            ModelError: If its structure is not known; see `structure_of`.
        """
        self._structure = structure_of(model)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Append one token of each sequence.

        Args:
            ids: ``[B, 1]``.
            positions: ``[B, 1]``, for the rotary embedding.
            cache: The model's, whose update and attention need no mask for one token.

        Returns:
            Logits ``[B, V]`` after it, in the model's dtype.
        """
        known = self._structure
        embedded = known.embedding(ids)
        angles = self._angles(embedded, positions)
        hidden, normed = add_norm(embedded[:, 0], None, norm=known.norms[0])
        for index, block in enumerate(known.blocks):
            cos, sin = angles[known.layer_types[index] if known.layer_types else ""]
            parts = linear(normed, block.projection)
            queries, keys, values = rotate(parts, cos, sin=sin, heads=block.heads)
            read = attended(block, queries, cache.update(keys, values, index))
            hidden, normed = add_norm(
                hidden,
                linear(read, block.output.weight),
                norm=block.before_mlp,
                bias=block.output.bias,
                inner=block.after_attention,
            )
            gated = gated_linear(normed, block.gate_up, activation=block.activation)
            hidden, normed = add_norm(
                hidden,
                linear(gated, block.down.weight),
                norm=known.norms[index + 1],
                bias=block.down.bias,
                inner=block.after_mlp,
            )
        return linear(normed, known.head.weight, whole=True)[0]

    def _angles(self, embedded: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosine and sine ``[B, D]`` for each kind of layer."""
        kinds: dict[str, tuple[Any, ...]] = {kind: (kind,) for kind in self._structure.layer_types} or {"": ()}
        found = {}
        for kind, more in kinds.items():
            cos, sin = self._structure.rotary(embedded, positions, *more)
            found[kind] = (cos[:, 0], sin[:, 0])
        return found


def attended(block: Block, queries: Tensor, held: tuple[Tensor, Tensor]) -> Tensor:
    """Attention ``[B, H D]`` of queries ``[B, H, 1, D]`` over what a cache's update returned, as the model calls it."""
    module = block.attention
    name = str(module.config._attn_implementation or "eager")
    function = ALL_ATTENTION_FUNCTIONS.get(name) or eager_attention(module)
    output, _ = function(
        module,
        queries,
        *held,
        None,
        dropout=0.0,
        scaling=module.scaling,
        sliding_window=getattr(module, "sliding_window", None),
    )
    read: Tensor = torch.flatten(output, 1)
    return read
