"""Makes the plans of a cache's steps, one for all layers of an extent."""

import torch
from torch import Tensor

from kvtuner_core.runtime.in_place.plan import Extent, StepPlan
from kvtuner_core.runtime.in_place.span import Span
from kvtuner_core.runtime.in_place.support import Kernels, chosen_kernels


class Planner:
    """What the layers of one cache share.

    Attributes:
        max_tokens: Tokens of a sequence for which buffers are made at once; 0 if that is unknown.
        captured: Whether the plans in use are those of a captured step, whose counters live on the device.
    """

    def __init__(self, *, max_tokens: int = 0, in_place: bool | None = None) -> None:
        self.max_tokens = max_tokens
        self._in_place = in_place
        self.captured = False
        self._plans: dict[Extent, tuple[Span, StepPlan]] = {}
        self._padded: dict[Extent, tuple[Tensor, StepPlan, StepPlan]] = {}
        self._static: dict[Extent, StepPlan] = {}

    def wants_buffers(self, device: torch.device) -> bool:
        """Whether layers on ``device`` are to be held in buffers.

        Raises:
            InputError: If ``KVTUNER_KERNELS`` is wrong.
        """
        return chosen_kernels(device) is Kernels.TRITON if self._in_place is None else self._in_place

    def plan(self, extent: Extent, span: Span, *, batch: int, device: torch.device) -> StepPlan:
        """The plan of an update; the same object for every layer of an extent in a step."""
        if self.captured:
            return self._static[extent]
        made = self._plans.get(extent)
        if made is not None and made[0] == span and made[1].batch == batch:
            return made[1]
        padding = torch.zeros(batch, dtype=torch.int32, device=device)
        plan = StepPlan(extent, count=span.count, padding=padding).at(span.before, span.packed_before)
        self._plans[extent] = (span, plan)
        self._padded.pop(extent, None)
        return plan

    def padded(self, plan: StepPlan, mask: Tensor, *, first: int) -> StepPlan:
        """``plan`` with the padding that an attention mask shows.

        Args:
            plan: The plan of the step.
            mask: ``[B, 1, count, K]``: bool, true where visible, or additive; or ``[B, K]``.
            first: Position of the mask's first column.
        """
        known = self._padded.get(plan.extent)
        if known is not None and known[0] is mask and known[1] is plan:
            return known[2]
        # The first query's row: a later one may be past the beginning of the first's sliding window.
        row = mask if mask.ndim == 2 else mask[:, 0, 0]
        seen = row >= 0 if row.is_floating_point() else row.bool()
        padding = seen.int().argmax(dim=-1).to(torch.int32) + first
        padded = plan.with_padding(padding.expand(plan.batch).contiguous())
        self._padded[plan.extent] = (mask, plan, padded)
        return padded

    def capture(self, extents: frozenset[Extent], padding: Tensor) -> dict[Extent, StepPlan]:
        """Use plans of one token a step that live on the device, until `release`."""
        self._static = {extent: StepPlan(extent, count=1, padding=padding) for extent in extents}
        self.captured = True
        return self._static

    def release(self) -> None:
        """Go back to plans from the host's numbers."""
        self.captured = False
        self._static = {}
        self._plans.clear()
        self._padded.clear()

    @staticmethod
    def progress(span: Span, device: torch.device) -> Tensor:
        """``StepPlan.progress`` of an update of any length."""
        numbers = (span.before, span.packed_before, span.packed_after, span.after)
        return torch.tensor(numbers, dtype=torch.int32).to(device, non_blocking=True)
