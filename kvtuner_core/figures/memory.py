"""What a cache costs under some policies, against the device's free memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import plotly.graph_objects as go

from kvtuner_core.figures.style import BLUE, INK, RED, axis, empty_figure, layout

_GIB, _MIB = 2**30, 2**20


class CacheCost(Protocol):
    """A named cache and its size."""

    @property
    def name(self) -> str:
        """The policy's name, such as ``K4V4``."""
        ...

    @property
    def effective_bits(self) -> float:
        """Bits per cached scalar with scales and offsets; windows left out."""
        ...

    @property
    def bytes(self) -> int:
        """Of the whole cache."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """Of one more token of one sequence."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """Numbers of the bars.

    Attributes:
        costs: The caches, in the order given.
        free_bytes: Free memory of the device, or ``None`` where unknown.
        unit: ``GiB``, or ``MiB`` where all are small.
    """

    costs: tuple[CacheCost, ...]
    free_bytes: int | None
    unit: str

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit."""
        return _GIB if self.unit == "GiB" else _MIB

    def rows(self) -> list[dict[str, Any]]:
        """One row per cache."""
        rows = []
        for cost in self.costs:
            row: dict[str, Any] = {
                "Policy": cost.name,
                "Effective bits": cost.effective_bits,
                f"Cache ({self.unit})": cost.bytes / self.unit_bytes,
                "Bytes per token": cost.bytes_per_token,
            }
            if self.free_bytes is not None:
                row["Fits in free memory"] = cost.bytes <= self.free_bytes
            rows.append(row)
        return rows


def memory_info(costs: Sequence[CacheCost], *, free_bytes: int | None = None) -> MemoryInfo:
    """The numbers of some caches.

    Args:
        costs: Name and size of each.
        free_bytes: Free memory of the device, or ``None`` where unknown.
    """
    largest = max((cost.bytes for cost in costs), default=0)
    return MemoryInfo(costs=tuple(costs), free_bytes=free_bytes, unit="GiB" if largest >= _GIB // 4 else "MiB")


def memory_figure(info: MemoryInfo, *, dark: bool = False, height: int | None = None) -> go.Figure:
    """A bar per cache, and a line at the free memory where that is near.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels; by default it follows the number of bars.
    """
    if not info.costs:
        return empty_figure("Nothing to compare", dark=dark, height=height or 160)
    sizes = [cost.bytes / info.unit_bytes for cost in info.costs]
    free = None if info.free_bytes is None else info.free_bytes / info.unit_bytes
    figure = go.Figure(
        go.Bar(
            x=sizes,
            y=[cost.name for cost in info.costs],
            orientation="h",
            marker={"color": [RED if free is not None and size > free else BLUE for size in sizes]},
            text=[
                f"{size:.3g} {info.unit} · {cost.effective_bits:.2f} bits"
                for size, cost in zip(sizes, info.costs, strict=True)
            ],
            textposition="auto",
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.update_layout(
        **layout(dark=dark, height=height or 110 + 42 * len(sizes)),
        xaxis={**axis(f"Cache size ({info.unit})"), "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        bargap=0.3,
    )
    if free is not None:
        _mark_free(figure, free, largest=max(sizes), text=f"free memory {free:.3g} {info.unit}")
    return figure


def _mark_free(figure: go.Figure, free: float, *, largest: float, text: str) -> None:
    near = free <= 1.6 * largest
    if near:
        figure.add_vline(x=free, line={"color": INK, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        text=text if near else f"{text}, beyond the chart →",
        x=free if near else 1,
        xref="x" if near else "paper",
        xanchor="center" if near else "right",
        y=1.0,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
    )
