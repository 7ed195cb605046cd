"""Which call is taken for one that is known."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kernels.launching import Launcher, _of_numbers, _of_tensors, launches_early, processors


@dataclass
class Kernel:
    """A kernel that notes how it is called."""

    calls: list[Any] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **more: self.calls.append((grid, args, more))


def test_calls_off_a_gpu_are_passed_on_as_they_are() -> None:
    kernel, x = Kernel(), torch.zeros(3)
    Launcher(kernel)((2, 1), (x,), (5, (1, 2)), {"SIZE": 4}, {"num_warps": 1})
    ((grid, args, more),) = kernel.calls
    assert grid == (2, 1)
    assert args[0] is x
    assert (args[1:], more) == ((5, (1, 2)), {"SIZE": 4, "num_warps": 1})


def test_a_processor_without_a_gpu() -> None:
    assert processors(torch.device("cpu")) == 1
    assert not launches_early(torch.device("cpu"))


def test_what_is_one_kind_here_is_one_variant_to_triton() -> None:
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    arguments: list[Any] = [0, 1, 2, 3, 15, 16, 17, 32, -1, -16, 2**31 - 1, 2**31, 2**31 + 16, 2**32, 2**63 - 1]
    arguments += [True, False, 0.0, 0.5, 1.0, 16.0, None, (1, 16), (1, 17), (2, 3), (2, 16), (1,), (16,)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool):
        x = torch.zeros(64, dtype=dtype)
        arguments += [x, x[1:], x[4:], x[8:], x[16:], x[17:], x[:0], torch.nn.Parameter(x, requires_grad=False)]
    variants: dict[object, set[object]] = {}
    for one in arguments:
        kind = _of_tensors((one,)) if isinstance(one, torch.Tensor) else _of_numbers((one,))
        variants.setdefault(kind, set()).add(native_specialize_impl(CUDABackend, one, False, True, True))
    assert {kind: found for kind, found in variants.items() if len(found) > 1} == {}
    assert len(variants) < len(arguments)
    assert len({_of_numbers((one,)) for one in (1, 1.0, True)}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_a_known_call_does_what_triton_does_and_another_is_another() -> None:
    from tests.kernels.launched import add_kernel

    launch = Launcher(add_kernel)
    x = torch.arange(1000, dtype=torch.float32, device="cuda")
    half = x.half()
    # Known calls come twice; tensors off their alignment, other numbers, dtypes and constants are other variants.
    cases = [
        (x, 1, 64),
        (x, 1, 64),
        (x[1:], 1, 64),
        (x[1:], 1, 64),
        (x, 16, 64),
        (x, 17, 64),
        (half, 17, 64),
        (x, 17, 32),
    ]
    for held, added, size in cases:
        out = torch.full((100,), torch.nan, device="cuda")
        launch((-(-100 // size),), (held, out), (added, (100,)), {"SIZE": size}, {"num_warps": 1})
        assert torch.equal(out, held[:100].float() + added)
    assert sum(len(prepared._known) for prepared in launch._known.values()) == 6
