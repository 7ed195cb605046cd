import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels.quantize import op as quantize_op
from kernels.unpack.op import dequantize, unpack
from tests.kernels.unpack.cases import SHAPES, Shape, fill

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_what_was_appended_comes_out_as_the_quantiser_stores_it(shape: Shape) -> None:
    filled = fill(shape)
    low = filled.oldest
    for sides, keys, expected in zip((filled.keys, filled.values), (True, False), filled.expected, strict=True):
        end = shape.tokens // 32 * 32 if shape.channel else shape.tokens
        codes, scale, offset = unpack(sides, keys=keys, begin=low, end=end)
        granularity, size = expected.granularity, expected.group_size
        again = quantize_op.from_codes(
            codes, scale, offset, bits=expected.bits, granularity=granularity, group_size=size
        )
        unit = size if granularity == "channel" else 1
        assert torch.equal(again.codes, expected.codes[:, :, low:end])
        assert torch.equal(again.scale, expected.scale[:, :, low // unit : end // unit])
        assert torch.equal(dequantize(sides, keys=keys, begin=low, end=end, dtype=torch.float32),
                           quantize_op.dequantize(expected, dtype=torch.float32)[:, :, low:end])  # fmt: skip


def test_positions_beyond_the_store_are_refused() -> None:
    filled = fill(SHAPES[0])
    with pytest.raises(ValueError, match="room for 256 positions; got end 257"):
        dequantize(filled.keys, keys=True, begin=0, end=257, dtype=torch.float32)


@pytest.mark.parametrize("ring", [None, 3])
def test_an_unquantised_side_comes_out_as_it_went_in(ring: int | None) -> None:
    filled = fill(Shape(key_bits=16, value_bits=4, ring=ring))
    raw = torch.randn((2, 3, 224, 64), generator=torch.Generator().manual_seed(0))
    raw[..., 5] *= 40
    stretch = {"keys": True, "begin": filled.oldest + 3, "end": 221, "dtype": torch.float32}
    assert torch.equal(dequantize(filled.keys, **stretch), raw[:, :, filled.oldest + 3 : 221])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_gives_what_the_reference_gives(shape: Shape, dtype: torch.dtype) -> None:
    filled = fill(shape)
    for sides, keys in ((filled.keys, True), (filled.values, False)):
        moved = [replace(side, words=side.words.cuda(), scales=side.scales.cuda()) for side in sides]
        for begin, end in ((filled.oldest, shape.tokens), (filled.oldest + 37, shape.tokens - 5)):
            stretch = {"keys": keys, "begin": begin, "end": end, "dtype": dtype}
            found = dequantize(moved, **stretch, implementation="triton")
            assert torch.equal(found.cpu(), dequantize(sides, **stretch, implementation="reference"))


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_kernel_agrees_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.unpack.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
