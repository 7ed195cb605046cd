"""What a step of the in-place cache reads and writes, as small tensors on the device.

The kernels take every number that changes from step to step from tensors, so that a captured
CUDA graph is right for each of them. Positions count the tokens of a sequence from 0; *store
positions* count from the first token after the sinks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.decode_attention.op import Visible
from kernels.step_numbers.op import Places, step_numbers
from kvtuner_core.domain.scheme import QuantScheme

MAX_QUERIES = 8
"""Tokens of an update that the fused attention takes at once; more are read through torch's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Which tokens a layer keeps where.

    Attributes:
        sinks: First tokens in full precision; 0 in sliding-window layers.
        residual: Newest tokens in full precision.
        unit: Tokens that are quantised together.
        sliding: Tokens that a query sees, itself included; ``None`` without a limit.
    """

    sinks: int
    residual: int
    unit: int
    sliding: int | None

    @classmethod
    def of(cls, scheme: QuantScheme, sliding: int | None) -> "Extent":
        """The extent of a layer with this sliding window under ``scheme``."""
        return cls(
            sinks=scheme.sink_length if sliding is None else 0,
            residual=scheme.residual_length,
            unit=scheme.flush_tokens,
            sliding=sliding,
        )

    @property
    def ring(self) -> int:
        """Slots for the newest tokens: those a step may find in full precision, and its own."""
        return self.residual + self.unit - 1 + MAX_QUERIES

    @property
    def places(self) -> Places:
        """The same for the kernels."""
        return Places(sinks=self.sinks, residual=self.residual, unit=self.unit, ring=self.ring, sliding=self.sliding)

    @property
    def slots(self) -> int:
        """Slots of the sinks, then of the ring."""
        return self.sinks + self.ring

    def first_visible(self, tokens: int) -> int:
        """The first position that the query after ``tokens`` tokens sees."""
        return 0 if self.sliding is None else max(0, tokens - (self.sliding - 1))

    def packed_after(self, tokens: int, packed: int) -> int:
        """Store position up to which everything is quantised after ``tokens`` tokens, ``packed`` of them already."""
        return max(packed, max(0, tokens - self.sinks - self.residual) // self.unit * self.unit)


class StepPlan:
    """The numbers of one update on the device; all layers of one extent share them.

    Attributes:
        extent: Where tokens are kept.
        count: Tokens of the update.
        progress: ``[4]`` int32: tokens before the update, store positions packed before and after it, tokens after it.
        packed: The packed tokens that each query sees.
        recent: ``[B, count, slots]`` bool, the slots of sinks and ring that each query sees.
        exact: Positions that each query sees where nothing is quantised: first and last (exclusive),
            each ``[B, count]`` int32.
    """

    progress: Tensor
    packed: Visible
    recent: Tensor
    exact: tuple[Tensor, Tensor]

    def __init__(self, extent: Extent, *, count: int, padding: Tensor) -> None:
        """Make a plan whose numbers are set by `at`.

        Args:
            extent: Where tokens are kept.
            count: Tokens of the update.
            padding: ``[B]`` int32, the positions at the front of each sequence that are only padding.
        """
        self.extent = extent
        self.count = count
        self._padding = padding
        self._counters = torch.zeros(2, dtype=torch.int32, device=padding.device)

    @property
    def batch(self) -> int:
        """Sequences."""
        return self._padding.shape[0]

    def with_padding(self, padding: Tensor) -> "StepPlan":
        """The same step with other padding ``[B]`` int32."""
        plan = StepPlan(self.extent, count=self.count, padding=padding)
        plan._counters = self._counters
        plan.derive()
        return plan

    def at(self, tokens: int, packed: int) -> "StepPlan":
        """Set the counters from the host and derive the rest."""
        self.set(tokens, packed)
        self.derive()
        return self

    def set(self, tokens: int, packed: int) -> None:
        """Set the counters: tokens before the step, and the store position that is packed up to."""
        self._counters.copy_(torch.tensor([packed, tokens], dtype=torch.int32))

    def derive(self) -> None:
        """Work out everything from the counters, without a word from the host."""
        made = step_numbers(self._counters, self._padding, count=self.count, places=self.extent.places)
        self.progress = made.progress
        self.recent = made.recent
        self.packed = Visible(first=made.first, last=made.last)
        self.exact = (made.exact_first, made.exact_last)

    def advance(self) -> None:
        """Move the counters past the update; the last thing of a captured step."""
        self._counters.copy_(self.progress[2:])

    def save(self) -> Tensor:
        """A copy of the counters."""
        return self._counters.clone()

    def restore(self, counters: Tensor) -> None:
        """Set the counters to what `save` returned."""
        self._counters.copy_(counters)
