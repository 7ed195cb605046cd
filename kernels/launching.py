# mypy: ignore-errors
"""Launches Triton kernels again and again without Triton finding out each time which variant is meant.

A call through Triton takes tens of microseconds of Python, most of them to find the compiled variant by the types,
values and alignments of three dozen arguments; a decode step of a model makes a hundred such calls. Whatever Triton
may look at is the key here, too, but it is one tuple, and the call goes straight to the variant.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

_MOST = 1024
"""Calls that are known; prompts of every length make new ones."""


class Launcher:
    """Launches one kernel; the interpreter's calls it passes on.

    Every argument that is not a ``tl.constexpr`` is given by place, tensors first, every one that is by name.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[tuple[object, ...], tuple[CompiledKernel, tuple[object, ...]]] = {}

    def __call__(
        self,
        grid: tuple[int, ...],
        tensors: tuple[Tensor, ...],
        numbers: tuple[Any, ...],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        """Launch the kernel.

        Args:
            grid: Programs in up to three dimensions.
            tensors: In the order of the kernel.
            numbers: Numbers and tuples of integers, which follow them.
            constants: Its compile-time arguments.
            options: Triton's: ``num_warps``, ``launch_pdl`` and such.
        """
        # On AMD's cards the size of a tensor's storage chooses, too.
        if not tensors[0].is_cuda or torch.version.hip:
            self._kernel[grid](*tensors, *numbers, **constants, **options)
            return
        device = driver.active.get_current_device()
        key = (device, *_kinds(tensors, numbers), *constants.values(), *options.items())
        known = self._known.get(key)
        if known is not None:
            compiled, rest = known
            compiled[(*grid, 1, 1)](*tensors, *numbers, *rest, stream=driver.active.get_current_stream(device))
            return
        compiled = self._kernel[grid](*tensors, *numbers, **constants, **options)
        names = self._kernel.arg_names[len(tensors) + len(numbers) :]
        if isinstance(compiled, CompiledKernel) and set(names) == set(constants):
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = compiled, tuple(constants[name] for name in names)


def _kinds(tensors: tuple[Tensor, ...], numbers: tuple[Any, ...]) -> tuple[object, ...]:
    """What may choose a variant: dtype and alignment of tensors, value and type of numbers (1 equals True)."""
    return (
        *[x.dtype for x in tensors],
        *[x.data_ptr() % 16 for x in tensors],
        *numbers,
        *map(type, numbers),
    )


next_power_of_2 = cache(triton.next_power_of_2)
"""Triton's, which takes microseconds a call."""


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def launches_early(device: torch.device) -> bool:
    """Whether a kernel can be launched while the one before it still runs (from Hopper on)."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device)[0] >= 9
