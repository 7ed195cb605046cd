import pytest
import torch

from kernels.rotary.op import Heads, rotate
from tests.kernels.interpreter import needs_interpreter, run_interpreted
from tests.kernels.rotary.cases import SMALL, TOLERANCE, Shape, make

LARGE = (
    *(Shape(batch=b, queries=32, keys=8, dim=128, parts=4, dtype=torch.bfloat16) for b in (1, 8, 64)),
    *(Shape(dim=d, parts=1, dtype=torch.float16) for d in (64, 80, 96, 256)),
    *(Shape(dim=256, keys=1, norm=n, dtype=torch.bfloat16) for n in ("gemma", "llama")),
    Shape(queries=14, keys=2, dim=64, bias=True, dtype=torch.bfloat16),
)


@pytest.mark.parametrize("shape", [*SMALL, *LARGE], ids=lambda shape: shape.name)
def test_the_reference_is_what_models_compute(shape: Shape) -> None:
    assert make(shape).off("cpu", "reference") < TOLERANCE[shape.dtype] / 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: shape.name)
def test_the_kernel_is_what_models_compute(shape: Shape) -> None:
    case = make(shape)
    off = case.off("cuda", "auto")
    assert off < TOLERANCE[shape.dtype]
    assert all(case.off("cuda", "auto") == off for _ in range(5))


def test_wrong_shapes_are_refused() -> None:
    heads, angles = Heads(queries=4, keys=2, dim=16), torch.zeros(2, 16)
    with pytest.raises(ValueError, match=r"parts must be \[S, B, 128\]"):
        rotate(torch.zeros(1, 2, 96), angles, sin=angles, heads=heads)
    with pytest.raises(ValueError, match="cos and sin"):
        rotate(torch.zeros(1, 2, 128), angles[:1], sin=angles, heads=heads)


@needs_interpreter
def test_the_kernel_agrees_in_the_interpreter() -> None:
    run_interpreted("tests.kernels.rotary.interpreted")
