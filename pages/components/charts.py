"""A chart with the table of the same numbers beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

Rows = Sequence[Mapping[str, Any]]


def is_dark() -> bool:
    """Whether the viewer's theme is dark."""
    return st.context.theme.type == "dark"


def selected(key: str, position: int = 0) -> str:
    """The custom value of the point that was clicked last in the chart ``key``, or empty.

    A selection is gone as soon as the figure changes, so it is read in the chart's callback and
    kept in the address.
    """
    state = st.session_state.get(key)
    points = state.selection.points if state else []
    if not points:
        return ""
    value = points[-1].get("customdata")
    if isinstance(value, Mapping):
        value = value.get(str(position), value.get(position))
    elif isinstance(value, list | tuple):
        value = value[position] if len(value) > position else None
    return "" if value is None else str(value)


def show(
    figure: Any,
    rows: Rows,
    *,
    key: str,
    alt: str,
    on_click: Callable[[], None] | None = None,
) -> None:
    """Draw a figure and, in a second tab, its numbers as a table.

    Args:
        figure: A Plotly figure.
        rows: The numbers; the keys are the columns' headings.
        key: Identity of the chart on its page.
        alt: What the chart shows, for those who do not see it.
        on_click: Called when a point was clicked; see `selected`.
    """
    if on_click is not None:
        keep_bright(figure)
    # A name beside a point at the edge would be cut off.
    figure.update_traces(cliponaxis=False, selector={"type": "scatter", "mode": "markers+text"})
    chart, numbers = st.tabs(["Chart", "Table"], key=f"{key}-tabs")
    with chart:
        st.plotly_chart(
            figure,
            key=key,
            config=figure_config(),
            on_select=on_click or "ignore",
            selection_mode="points",
            alt=alt,
        )
    with numbers:
        table(rows, key=f"{key}-table")


def mark_limit(figure: Any, limit: float, text: str) -> None:
    """Shade what lies right of a limit on the horizontal axis."""
    right = max(limit, figure.layout.xaxis.range[1]) if figure.layout.xaxis.range else limit + 1
    figure.add_vrect(x0=limit, x1=right, fillcolor="#8a929c", opacity=0.12, line_width=0, layer="below")
    figure.add_annotation(
        x=limit, y=1, yref="paper", text=text, showarrow=False, xanchor="left", yanchor="top", font={"size": 12}
    )


def mark_points(figure: Any, points: Sequence[tuple[float, float]], name: str) -> None:
    """Ring some points."""
    import plotly.graph_objects as go

    from kvtuner_core.figures import INK

    marker = {"size": 17, "symbol": "circle-open", "color": INK, "line": {"width": 2}}
    x, y = [point[0] for point in points], [point[1] for point in points]
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, hoverinfo="skip"))


def keep_bright(figure: Any) -> None:
    """Let a click on one point leave the others as they are."""
    for trace in figure.data:
        if trace.type == "scatter" and "markers" in (trace.mode or ""):
            opacity = 1 if trace.marker.opacity is None else trace.marker.opacity
            trace.update(unselected={"marker": {"opacity": opacity}}, selected={"marker": {"opacity": opacity}})


def table(rows: Rows, *, key: str) -> None:
    """A table that can be sorted, searched and copied."""
    st.dataframe(list(rows), hide_index=True, key=key)


def fact(label: str, value: str, note: str = "", *, help: str | None = None) -> None:
    """A number with its label above and a note below."""
    with st.container(gap=None):
        st.metric(label, value, help=help)
        if note:
            st.caption(note)


def figure_config() -> dict[str, Any]:
    """How Plotly behaves: no logo, no upload."""
    from kvtuner_core.figures import CHART_CONFIG

    return dict(CHART_CONFIG)
