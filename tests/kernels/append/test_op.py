import pytest
import torch

from kernels.append.op import append
from kernels.decode_attention.op import dequantize
from kernels.quantize.op import simulate
from tests.kernels.append.cases import SMALL, Shape, fill, history, progress, stores


@pytest.mark.parametrize("shape", [shape for shape in SMALL if not shape.ring], ids=lambda shape: shape.name)
def test_the_store_holds_what_the_quantiser_makes_of_the_whole_history(shape: Shape) -> None:
    both = history(shape)
    held = fill(shape, both)
    *_, (_, _, _, packed) = progress(shape)
    for x, sides, keys in ((both[0], held.keys, True), (both[1], held.values, False)):
        channel = sides[0].granularity == "channel"
        due = x[:, :, shape.sinks : shape.sinks + packed].float()
        expected = (
            due
            if sides[0].bits == 16
            else simulate(
                due,
                bits=sides[0].bits,
                granularity=sides[0].granularity,
                group_size=32 if channel else sides[0].group_size or shape.head_dim,
            )
        )
        found = torch.cat([dequantize(side, keys=keys) for side in sides], dim=2)[:, :, :packed]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_the_recent_buffer_holds_sinks_and_the_newest_tokens(shape: Shape) -> None:
    both = history(shape)
    held = fill(shape, both)
    slots, total = held.recent.keys.shape[2], sum(shape.pieces)
    ring = slots - shape.sinks
    for x, stored in zip(both, (held.recent.keys, held.recent.values), strict=True):
        for position in (*range(min(shape.sinks, total)), *range(max(shape.sinks, total - ring), total)):
            slot = position if position < shape.sinks else shape.sinks + (position - shape.sinks) % ring
            assert torch.equal(stored[:, :, slot], x[:, :, position])


def test_what_does_not_fit_is_refused() -> None:
    shape = Shape()
    held, (k, v) = stores(shape), history(shape)
    numbers = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="fit the recent buffer"):
        append(held.keys[0], held.values[0], recent=held.recent, new=(k[..., :32], v[..., :32]), progress=numbers)
    with pytest.raises(ValueError, match=r"progress must be int32 \[4\]"):
        append(held.keys[0], held.values[0], recent=held.recent, new=(k, v), progress=numbers.long())
