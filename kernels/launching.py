# mypy: ignore-errors
"""Launches Triton kernels again and again without Triton finding out each time which variant is meant.

A call through Triton takes tens of microseconds of Python, most of them to find the compiled variant by the types,
values and alignments of three dozen arguments; a decode step of a model makes a hundred such calls. Whatever Triton
may look at is the key here, too, but it is one tuple, and the call goes straight to the variant. A launch of which all
but the tensors is known beforehand can be prepared, which leaves little to look at.
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
"""Launches of a kernel that are known; prompts of every length make new ones."""


class Launcher:
    """Launches one kernel; the interpreter's calls it passes on.

    Every argument that is not a ``tl.constexpr`` is given by place, tensors first, every one that is by name.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[tuple[object, ...], Prepared] = {}

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
        kind = (grid, *_of_numbers(numbers), *constants.values(), *options.items())
        prepared = self._known.get(kind)
        if prepared is None:
            prepared = self.prepare(grid, numbers, constants, options)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[kind] = prepared
        prepared(*tensors)

    def prepare(
        self, grid: tuple[int, ...], numbers: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
    ) -> Prepared:
        """A launch that asks for the tensors alone; the rest as for a call."""
        return Prepared(self._kernel, grid, numbers, constants, options)


class Prepared:
    """Launches one kernel with the same numbers and options again and again."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        numbers: tuple[Any, ...],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self._kernel = kernel
        self._grid = grid
        self._numbers = numbers
        self._named = constants | options
        self._constants = constants
        self._known: dict[tuple[object, ...], tuple[CompiledKernel, tuple[object, ...]]] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """Launch the kernel on tensors in its order."""
        # On AMD's cards the size of a tensor's storage chooses, too.
        if not tensors[0].is_cuda or torch.version.hip:
            self._kernel[self._grid](*tensors, *self._numbers, **self._named)
            return
        device = driver.active.get_current_device()
        key = (device, *_of_tensors(tensors))
        known = self._known.get(key)
        if known is not None:
            launch, rest = known
            launch(*tensors, *rest, stream=driver.active.get_current_stream(device))
            return
        compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._named)
        names = self._kernel.arg_names[len(tensors) + len(self._numbers) :]
        if isinstance(compiled, CompiledKernel) and set(names) == set(self._constants):
            rest = (*self._numbers, *(self._constants[name] for name in names))
            self._known[key] = compiled[(*self._grid, 1, 1)], rest


def _of_tensors(tensors: tuple[Tensor, ...]) -> tuple[object, ...]:
    """What of tensors may choose a variant: dtype and alignment."""
    return (*[x.dtype for x in tensors], *[not x.data_ptr() % 16 for x in tensors])


def _of_numbers(numbers: tuple[Any, ...]) -> tuple[object, ...]:
    """What of numbers and tuples may choose a variant: value and type, since 1, 1.0 and True are equal."""
    return (*numbers, *map(type, numbers))


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
