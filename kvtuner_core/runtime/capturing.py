"""What a capture of a CUDA graph must not leave behind where it fails."""

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undone_where_it_fails(pool: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Whoever captures during the block, and fails, leaves stream and allocator as they were.

    Before 2.12 torch does not tell its allocator that a capture has ended which the device broke off, and the
    allocator refuses to free anything from then on. And torch's own context leaves its stream the current one.

    Args:
        pool: torch's name for the memory that the graph takes, from `torch.cuda.graph_pool_handle`.
        device: The CUDA device, with its index.

    Raises:
        RuntimeError: What broke the capture off, where that is known, in place of the news that it is broken off.
    """
    stream, before = torch.cuda.current_stream(device), sys.exception()
    try:
        yield
    except RuntimeError as error:
        torch.cuda.set_stream(stream)
        # Refused where the capture is over for the allocator, too.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
        first = error.__context__
        if isinstance(first, RuntimeError) and first is not before:
            raise first from None
        raise
