"""Colours, axes and layout that all charts share.

The colours keep apart for the common colour-vision deficiencies and read on light and dark ground.
"""

import math
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

CHART_CONFIG = MappingProxyType({"showSendToCloud": False, "displaylogo": False})
"""How Plotly behaves: no upload button, no logo."""

BLUE, ORANGE, TEAL, RED, GREY = "#3a86c8", "#d98b1f", "#2a9d8f", "#cc5a3b", "#8a929c"

INK = "#78828e"
"""Rings and lines on either ground: a viewer may change the theme without a figure being made anew."""

BITS_COLOURS = MappingProxyType({16: "#8a929c", 8: "#2f6db5", 4: "#4fb3a5", 3: "#e0b43c", 2: "#d2603a"})
"""Colour of a bit width; wide is cool, narrow is warm."""

BITS_TEXT = MappingProxyType({16: "#ffffff", 8: "#ffffff", 4: "#10222b", 3: "#2b2208", 2: "#ffffff"})
"""Colour of a number written on it."""

GROUP_COLOURS = ("#7aa6d6", "#e3b778", "#7fc3ae", "#d99a8b", "#b3a4d4", "#c9c37a", "#93c0d0", "#c7a1b8")
"""Grounds of the layer groups, used again from the start where there are more groups."""

_TINY = 1e-12


def layout(*, dark: bool, height: int, title: str = "") -> dict[str, Any]:
    """Layout of every chart: transparent ground, little margin, legend above.

    Args:
        dark: Whether the ground behind is dark.
        height: Height in pixels.
        title: A short title, or empty.
    """
    return {
        "template": "plotly_dark" if dark else "plotly_white",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": height,
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}} if title else None,
        "margin": {"l": 8, "r": 8, "t": 76 if title else 52, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "font": {"size": 12}},
        "hoverlabel": {"align": "left", "namelength": -1},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
    }


def axis(title: str, *, log: bool = False) -> dict[str, Any]:
    """An axis with a quiet grid.

    Args:
        title: What it shows, with the unit.
        log: Whether it is logarithmic.
    """
    quiet = {"gridcolor": "rgba(128,128,128,0.18)", "zeroline": False, "automargin": True}
    shared = {"title": {"text": title, "font": {"size": 13}}, **quiet}
    return {**shared, "type": "log", "dtick": 1, "exponentformat": "power"} if log else shared


def log_floor(values: list[float]) -> float:
    """Where a logarithmic axis draws zero: the decade at or below the smallest positive value."""
    positive = [value for value in values if math.isfinite(value) and value > _TINY]
    return float(10.0 ** math.floor(math.log10(min(positive)))) if positive else 1e-6


def floored(value: float, floor: float) -> float | None:
    """``value`` as a logarithmic axis draws it; ``None`` where it is not a finite number."""
    return max(value, floor) if math.isfinite(value) else None


def short(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not a number"


def decade_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high`` (positive) for a logarithmic colour bar."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001] or [low, high]


def empty_figure(text: str, *, dark: bool, height: int) -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure(layout=layout(dark=dark, height=height))
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure
