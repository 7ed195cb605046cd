"""The simulating kernel against the reference, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from kernels.quantize import op, reference
from tests.kernels.interpreter import needs_interpreter, run_interpreted
from tests.kernels.quantize.simulated import Case, cases, differences


@needs_interpreter
def test_the_kernel_agrees_in_the_interpreter() -> None:
    run_interpreted("tests.kernels.quantize.simulated")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_the_kernel_gives_the_bits_of_the_reference(case: Case) -> None:
    assert not differences(case, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_a_large_slice_with_strides_and_the_packed_tensor_agree(granularity: op.Granularity) -> None:
    x = torch.randn((3, 5000, 4, 128), device="cuda", dtype=torch.bfloat16).transpose(1, 2)[:, :, 40:4936]
    for bits in op.BITS:
        options = {"bits": bits, "granularity": granularity, "group_size": 32}
        found = op.simulate(x, **options)
        assert torch.equal(found, op.simulate(x, **options, implementation="reference"))
        assert torch.equal(found, op.dequantize(op.quantize(x, **options), dtype=x.dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gradient_is_left_to_the_reference() -> None:
    x = torch.randn((1, 1, 4, 8), device="cuda", requires_grad=True)
    assert op.simulate(x, bits=4, granularity="token", group_size=8).requires_grad


@pytest.mark.parametrize(
    ("cuda", "wanted", "triton", "taken"),
    [
        (True, False, True, "kernels.quantize.triton_impl"),
        (True, True, True, "kernels.quantize.reference"),
        (True, False, False, "kernels.quantize.reference"),
        (False, False, True, "kernels.quantize.reference"),
    ],
)
def test_the_kernel_is_for_cuda_where_there_is_triton_and_no_gradient(monkeypatch, cuda, wanted, triton, taken):
    pytest.importorskip("triton")
    monkeypatch.setattr(op, "_has_triton", lambda: triton)
    x = SimpleNamespace(is_cuda=cuda, requires_grad=wanted)
    assert op._implementation(x, "auto").__name__ == taken
    assert op._implementation(x, "reference") is reference
    with torch.no_grad():
        assert op._implementation(x, "auto").__name__.endswith("triton_impl") == (cuda and triton)
