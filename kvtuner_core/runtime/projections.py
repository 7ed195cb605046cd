"""Which rows of which matrix make a layer's keys and values.

Families name and fuse their projections differently, so names are not trusted: a few tokens run
through the model with every linear layer's output cut from its graph, and a gradient of what
reaches the attention tells which outputs keys and values are made of.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kvtuner_core.runtime.interception import decoder_of, intercepted

_TOKENS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """The part of a linear layer that makes keys, or values.

    Attributes:
        module: The linear layer, fused or not.
        features: Indices of its outputs that count.
    """

    module: nn.Module
    features: Tensor

    @property
    def weight(self) -> Tensor:
        """``[features, inputs]``."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.t()[self.features] if isinstance(self.module, Conv1D) else weight[self.features]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerProjections:
    """W_k and W_v of one layer."""

    keys: Projection
    values: Projection


def find_projections(model: PreTrainedModel, layers: int) -> tuple[LayerProjections, ...] | None:
    """W_k and W_v of each cached layer, or ``None`` where they cannot be told apart.

    Args:
        model: The model, whose attention is taken from transformers' interface.
        layers: Number of cached layers.
    """
    tracer = _Tracer()
    handles = [
        module.register_forward_hook(tracer.cut)
        for module in decoder_of(model).modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None]
    try:
        with torch.enable_grad(), intercepted(model, tracer):
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = [tracer.found.get(layer) for layer in range(layers)]
    return None if any(layer is None for layer in found) else tuple(layer for layer in found if layer is not None)


@dataclass(slots=True, eq=False)
class _Tracer:
    """In the place of the attention: follows keys and values back to the linear layers before it."""

    found: dict[int, LayerProjections | None] = field(default_factory=dict)
    _cut: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def cut(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """Forward hook: let the graph begin at this output."""
        leaf = output.detach().requires_grad_()
        self._cut.append((module, leaf))
        return leaf

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None = None, **_own: Any
    ) -> tuple[Tensor, None]:
        """See `interception.Attention`; what is attended to does not matter here."""
        layer = int(getattr(module, "layer_idx", len(self.found)))
        if layer not in self.found:
            self.found[layer] = self._trace(query, key, value)
        self._cut.clear()
        rows, heads, tokens, _ = query.shape
        return query.new_zeros((rows, tokens, heads, value.shape[-1])), None

    def _trace(self, query: Tensor, key: Tensor, value: Tensor) -> LayerProjections | None:
        queries, keys, values = (self._sources(tensor) for tensor in (query, key, value))
        if len(keys) != 1 or len(values) != 1 or _overlap(keys, values) or _overlap(keys, queries):
            return None
        return LayerProjections(keys=keys[0], values=values[0])

    def _sources(self, tensor: Tensor) -> list[Projection]:
        if not tensor.requires_grad:
            return []
        # Ones could cancel out: normalised keys, for example, have no gradient along themselves.
        generator = torch.Generator(device="cpu").manual_seed(0)
        weights = torch.randn(tensor.shape, generator=generator).to(tensor)
        leaves = [leaf for _, leaf in self._cut]
        gradients = torch.autograd.grad(tensor, leaves, weights, retain_graph=True, allow_unused=True)
        found = []
        for (module, _), gradient in zip(self._cut, gradients, strict=True):
            if gradient is not None:
                features = gradient.flatten(0, -2).abs().amax(0).nonzero().flatten()
                found.append(Projection(module=module, features=features))
        return found


def _overlap(one: list[Projection], other: list[Projection]) -> bool:
    return any(a.module is b.module and bool(torch.isin(a.features, b.features).any()) for a in one for b in other)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projected:
    """What one projection was given and gave in a forward pass, its graph attached.

    Attributes:
        projection: Which one.
        given: ``[..., inputs]``.
        output: ``[..., outputs]``, of the whole linear layer.
    """

    projection: Projection
    given: Tensor
    output: Tensor

    def gradient_norms(self, gradient: Tensor) -> Tensor:
        """Norm of each row's gradient of the weight, ``[B]``: the sum over tokens of the output's gradient times input.

        So the weights themselves need no gradient, and nothing of the model's size is kept.
        """
        own = gradient.flatten(1, -2)[..., self.projection.features]
        exact = torch.promote_types(own.dtype, torch.float32)
        product = own.to(exact).mT @ self.given.detach().flatten(1, -2).to(exact)
        norms: Tensor = torch.linalg.matrix_norm(product)
        return norms


@contextlib.contextmanager
def recorded_projections(projections: Sequence[Projection]) -> Iterator[list[Projected]]:
    """Collect what each projection does during the block, in the order in which the model calls them."""
    recorded: list[Projected] = []

    def keep(projection: Projection) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()
            recorded.append(Projected(projection=projection, given=inputs[0], output=output))
            return output

        return hook

    handles = [projection.module.register_forward_hook(keep(projection)) for projection in projections]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
