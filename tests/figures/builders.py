"""Short ways to look into a figure."""

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go


def trace(figure: go.Figure, name: str) -> Any:
    """The one trace of that name."""
    (found,) = [item for item in figure.data if item.name == name]
    return found


def axis_titles(figure: go.Figure) -> list[str]:
    """Titles of all axes and colour bars."""
    layout = figure.to_plotly_json()["layout"]
    axes = [value for key, value in layout.items() if key.startswith(("xaxis", "yaxis"))]
    titles = [axis.get("title", {}).get("text", "") for axis in axes if axis.get("title")]
    bars = [item.colorbar.title.text for item in figure.data if getattr(item, "colorbar", None)]
    return [title for title in titles + bars if title]


def numbers(values: Any) -> Iterator[float]:
    """The numbers of a trace's coordinate, holes left out."""
    return (float(value) for value in values if value is not None)
