"""Measured speed-ups over full precision, pair by pair and shape by shape, and how near the bytes' limit they are."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.speed import SpeedRow, SpeedTable
from kvtuner_core.figures.style import INK, axis, empty_figure, layout

PAIR_COLOURS = MappingProxyType(
    {"K8V8": "#2f6db5", "K8V4": "#6aa3cf", "K4V4": "#4fb3a5", "K4V2": "#e0b43c", "K2V2": "#d2603a"}
)
"""Colour of a measured pair; wide is cool, narrow is warm."""

_OTHER = "#8a929c"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedInfo:
    """Numbers of the chart and its table.

    Attributes:
        what: What a time is of, such as ``a decode step``.
        speeds: Rows of one scheme, small shapes first.
    """

    what: str
    speeds: tuple[SpeedRow, ...]

    @property
    def pairs(self) -> tuple[str, ...]:
        """The measured pairs, in the order of the rows."""
        return tuple(dict.fromkeys(row.pair for row in self.speeds))

    def rows(self) -> list[dict[str, Any]]:
        """One row per shape and pair."""
        return [
            {
                "Batch x tokens": row.shape,
                "Pair": row.pair,
                f"{self.what[:1].upper()}{self.what[1:]} (ms)": row.ms,
                "bf16 (ms)": row.full_ms,
                "Times faster than bf16": row.speedup,
                "Allowed by the bytes (times)": row.ceiling,
                "Share of that (%)": round(100 * row.of_ceiling, 1),
            }
            for row in self.speeds
        ]


def speed_info(table: SpeedTable, scheme: str, *, what: str) -> SpeedInfo:
    """The numbers of one scheme.

    Args:
        table: What was measured.
        scheme: One of the table's schemes.
        what: What a time is of, such as ``a decode step``.
    """
    return SpeedInfo(what=what, speeds=table.of_scheme(scheme))


def speed_figure(info: SpeedInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """Bars of how many times faster than bf16 each pair is.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    figure = _bars(info, lambda row: row.speedup, dark=dark, height=height)
    if info.speeds:
        full = {"color": INK, "width": 1.2, "dash": "dash"}
        figure.add_hline(y=1, line=full, annotation_text="bf16", annotation_position="top left")
        figure.update_layout(yaxis={**axis("Times faster than bf16"), "rangemode": "tozero"})
    return figure


def speed_share_figure(info: SpeedInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """Bars of the share that the speed-up of each pair is of what the bytes allow; arguments as for `speed_figure`."""
    figure = _bars(info, lambda row: 100 * row.of_ceiling, dark=dark, height=height)
    if info.speeds:
        figure.update_layout(yaxis={**axis("Share of what the bytes allow (%)"), "rangemode": "tozero"})
    return figure


def _bars(info: SpeedInfo, value: Callable[[SpeedRow], float], *, dark: bool, height: int) -> go.Figure:
    if not info.speeds:
        return empty_figure("Nothing was measured", dark=dark, height=height)
    figure = go.Figure()
    for pair in info.pairs:
        mine = [row for row in info.speeds if row.pair == pair]
        figure.add_trace(
            go.Bar(
                x=[row.shape for row in mine],
                y=[value(row) for row in mine],
                name=pair,
                marker={"color": PAIR_COLOURS.get(pair, _OTHER)},
                hovertext=[_line(row) for row in mine],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    title = {"text": "Batch x tokens", "font": {"size": 13}}
    figure.update_layout(
        **layout(dark=dark, height=height),
        barmode="group",
        bargap=0.25,
        xaxis={"type": "category", "automargin": True, "tickangle": -40, "title": title},
    )
    return figure


def _line(row: SpeedRow) -> str:
    return (
        f"{row.pair}, {row.shape}<br>{row.ms:.3g} ms, bf16 {row.full_ms:.3g} ms<br>{row.speedup:.2f} times faster, "
        f"the bytes allow {row.ceiling:.2f} ({100 * row.of_ceiling:.0f}%)"
    )
