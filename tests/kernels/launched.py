# mypy: ignore-errors
"""A kernel to launch."""

import triton
import triton.language as tl


@triton.jit
def add_kernel(p_x, p_out, added, sizes, SIZE: tl.constexpr):  # noqa: N803
    """Add a number to the first values of ``x``."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    mask = i < sizes[0]
    tl.store(p_out + i, tl.load(p_x + i, mask=mask).to(tl.float32) + added, mask=mask)
