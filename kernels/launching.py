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
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

_MOST = 1024
"""Calls that are known; prompts of every length make new ones."""


class Launcher:
    """Launches one kernel; the interpreter's calls it passes on.

    Every argument that is not a ``tl.constexpr`` is given by place, every one that is by name.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[tuple[object, ...], tuple[CompiledKernel, tuple[object, ...]]] = {}

    def __call__(
        self, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """Launch the kernel.

        Args:
            grid: Programs in up to three dimensions.
            args: Tensors, numbers, and tuples of integers, in the order of the kernel.
            constants: Its compile-time arguments.
            options: Triton's: ``num_warps``, ``launch_pdl`` and such.
        """
        # On AMD's cards the size of a tensor's storage chooses, too.
        if not args[0].is_cuda or torch.version.hip:
            self._kernel[grid](*args, **constants, **options)
            return
        key = (driver.active.get_current_device(), *map(_kind, args), *constants.values(), *options.items())
        known = self._known.get(key)
        if known is not None:
            compiled, rest = known
            compiled[(*grid, 1, 1)](*args, *rest)
            return
        compiled = self._kernel[grid](*args, **constants, **options)
        names = self._kernel.arg_names[len(args) :]
        if isinstance(compiled, CompiledKernel) and set(names) == set(constants):
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = compiled, tuple(constants[name] for name in names)


def _kind(argument: Any) -> object:
    """What may choose a variant: of a tensor, its dtype and alignment; of an integer, its value, and that it is one."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    # A truth value equals 1 or 0 in a key, yet is another type to Triton.
    return type(argument) if isinstance(argument, float | bool) else argument


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def launches_early(device: torch.device) -> bool:
    """Whether a kernel can be launched while the one before it still runs (from Hopper on)."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device)[0] >= 9
