import pytest
import torch

from kernels.linear.op import gated_linear, linear
from tests.kernels.interpreter import needs_interpreter, run_interpreted
from tests.kernels.linear.cases import SMALL, TOLERANCE, Shape, errors, make

HALVES = (torch.float16, torch.bfloat16)
LARGE = (
    *(Shape(rows=r, outer=1000, inner=1024, dtype=torch.bfloat16) for r in (1, 2, 16, 17, 33, 64)),
    *(Shape(rows=r, outer=16384 + 6, inner=200, dtype=torch.bfloat16) for r in (5, 64)),
    *(Shape(rows=4, outer=6144, inner=4096, dtype=t) for t in HALVES),
    Shape(rows=65, outer=512, inner=384, dtype=torch.float16),
    Shape(rows=2, outer=64, inner=36, dtype=torch.bfloat16),
)


def _bounds(dtype: torch.dtype) -> dict[str, float]:
    # The gate, its activation and the product are each rounded.
    loose = 2 if dtype in HALVES else 1
    return {
        name: TOLERANCE[dtype] * (loose if name in ("silu", "gelu_tanh") else 1)
        for name in ("parts", "whole", "silu", "gelu_tanh")
    }


@pytest.mark.parametrize("implementation", ["reference", "auto"])
@pytest.mark.parametrize("shape", [*SMALL, *LARGE[:2]], ids=lambda shape: shape.name)
def test_the_reference_agrees_with_float64(shape: Shape, implementation: str) -> None:
    found, bounds = errors(*make(shape), implementation), _bounds(shape.dtype)
    assert all(found[name] < bounds[name] for name in bounds), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: shape.name)
def test_the_kernel_agrees_with_float64_and_with_itself(shape: Shape) -> None:
    x, weight = (tensor.cuda() for tensor in make(shape))
    found, bounds = errors(x, weight, "auto"), _bounds(shape.dtype)
    assert all(found[name] < bounds[name] for name in bounds), found
    first = linear(x, weight)
    assert all(torch.equal(linear(x, weight), first) for _ in range(50))


def test_a_whole_product_is_one_part_in_the_models_dtype() -> None:
    x, weight = make(Shape(dtype=torch.bfloat16))
    product = linear(x, weight, whole=True)
    assert product.shape == (1, 3, 192)
    assert product.dtype == torch.bfloat16


def test_wrong_shapes_are_refused() -> None:
    x, weight = make(SMALL[0])
    with pytest.raises(ValueError, match=r"\[B, K\] and \[N, K\]"):
        linear(x[:, :8], weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear(x, weight.t().contiguous().t())
    with pytest.raises(ValueError, match="as many rows for the gate"):
        gated_linear(x, weight[:5], activation="silu")


@needs_interpreter
def test_the_kernel_agrees_in_the_interpreter() -> None:
    run_interpreted("tests.kernels.linear.interpreted")
