import pytest
import torch

from kernels.norm.op import Norm, add_norm
from tests.kernels.interpreter import needs_interpreter, run_interpreted
from tests.kernels.norm.cases import SMALL, TOLERANCE, Shape, make

LARGE = (
    *(Shape(rows=r, width=w, parts=4, dtype=torch.bfloat16) for r in (1, 64) for w in (64, 2048, 4096, 5120, 8192)),
    *(Shape(width=1152, inner=True, offset=True, dtype=t) for t in (torch.float16, torch.bfloat16)),
    *(Shape(width=896, bias=True, parts=p, dtype=torch.bfloat16) for p in (0, 1, 3, 8)),
    Shape(rows=200, width=3072, parts=1, dtype=torch.float16),
)


@pytest.mark.parametrize("shape", [*SMALL, *LARGE], ids=lambda shape: shape.name)
def test_the_reference_is_what_models_compute(shape: Shape) -> None:
    # Sums of parts may round to a neighbour, nothing more.
    assert max(make(shape).off("cpu", "reference")) < TOLERANCE[shape.dtype] / 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: shape.name)
def test_the_kernel_is_what_models_compute(shape: Shape) -> None:
    case = make(shape)
    off = case.off("cuda", "auto")
    assert max(off) < TOLERANCE[shape.dtype]
    assert all(case.off("cuda", "auto") == off for _ in range(5))


def test_a_norm_alone_leaves_the_residual_stream_as_it_is() -> None:
    hidden = torch.randn(2, 16)
    total, _ = add_norm(hidden, None, norm=Norm(weight=torch.ones(16), eps=1e-6))
    assert total is hidden


def test_wrong_shapes_are_refused() -> None:
    hidden, norm = torch.randn(2, 16), Norm(weight=torch.ones(16), eps=1e-6)
    with pytest.raises(ValueError, match=r"\[B, D\] and \[S, B, D\]"):
        add_norm(hidden, torch.zeros(1, 3, 16), norm=norm)
    with pytest.raises(ValueError, match="weights and bias"):
        add_norm(hidden, None, norm=Norm(weight=torch.ones(15), eps=1e-6))


@needs_interpreter
def test_the_kernel_agrees_in_the_interpreter() -> None:
    run_interpreted("tests.kernels.norm.interpreted")
