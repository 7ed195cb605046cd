"""Heatmap of one error over layers and pairs, with pairs kept and layer groups marked."""

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvtuner_core.domain.study import SweepResult
from kvtuner_core.figures import metrics
from kvtuner_core.figures.style import GROUP_COLOURS, axis, decade_ticks, layout, log_floor, short
from kvtuner_core.tuning.profiles import by_layer, widest_first

_ONE_LINE, _TWO_LINES = 12, 40
"""Layers whose group numbers stand side by side in one line, and in two; the numbers of more are left to hovering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapInfo:
    """Numbers of the heatmap.

    Attributes:
        label: The metric with its unit.
        pairs: Names of the pairs, most bits first.
        values: Per pair, the metric of each layer.
        kept: Per pair, whether pruning kept it in each layer.
        groups: Number of each layer's group, from 0.
        floor: What the colours take for zero.
    """

    label: str
    pairs: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    kept: tuple[tuple[bool, ...], ...]
    groups: tuple[int, ...]
    floor: float

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer and pair."""
        return [
            {
                "Layer": layer,
                "Pair": pair,
                self.label: self.values[row][layer],
                "Kept": self.kept[row][layer],
                "Group": self.groups[layer],
            }
            for layer in range(len(self.groups))
            for row, pair in enumerate(self.pairs)
        ]


def heatmap_info(sweep: SweepResult, metric: str) -> HeatmapInfo:
    """The numbers of one metric of a sweep.

    Raises:
        InputError: If there is no such metric, or a profile is missing.
    """
    label = metrics.label(metric)
    tables = by_layer(sweep.profiles)
    pairs = widest_first(tables[0])
    values = tuple(tuple(metrics.value(table[pair], metric) for table in tables) for pair in pairs)
    group_of = {layer: number for number, group in enumerate(sweep.space.groups) for layer in group.layers}
    return HeatmapInfo(
        label=label,
        pairs=tuple(pair.name for pair in pairs),
        values=values,
        kept=tuple(tuple(pair in kept for kept in sweep.space.kept) for pair in pairs),
        groups=tuple(group_of[layer] for layer in range(len(tables))),
        floor=log_floor([value for row in values for value in row]),
    )


def heatmap_figure(info: HeatmapInfo, *, dark: bool = False, height: int | None = None) -> go.Figure:
    """The heatmap; every cell has a point whose custom data are its layer and its pair.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels; by default it follows the number of pairs.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.88, 0.12], vertical_spacing=0.02)
    figure.add_trace(_cells(info), row=1, col=1)
    figure.add_trace(_kept_marks(info), row=1, col=1)
    figure.add_trace(_targets(info), row=1, col=1)
    figure.add_trace(_group_strip(info), row=2, col=1)
    figure.add_trace(_group_numbers(info), row=2, col=1)
    figure.update_layout(**layout(dark=dark, height=height or 160 + 30 * len(info.pairs)))
    figure.update_yaxes(autorange="reversed", showgrid=False, row=1, col=1)
    figure.update_yaxes(showgrid=False, tickvals=[0], ticktext=["group"], range=[-0.5, 0.5], row=2, col=1)
    figure.update_xaxes(showgrid=False, zeroline=False, range=[-0.5, len(info.groups) - 0.5])
    figure.update_xaxes({**axis("Layer"), "showgrid": False}, row=2, col=1)
    return figure


def _cells(info: HeatmapInfo) -> go.Heatmap:
    shown = [[max(value, info.floor) if math.isfinite(value) else math.nan for value in row] for row in info.values]
    finite = [value for row in shown for value in row if math.isfinite(value)] or [info.floor]
    ticks = decade_ticks(min(finite), max(finite))
    return go.Heatmap(
        z=[[math.log10(value) if math.isfinite(value) else None for value in row] for row in shown],
        y=list(info.pairs),
        colorscale="Cividis",
        hoverinfo="skip",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": info.label, "side": "right"},
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
            "thickness": 12,
        },
    )


def _kept_marks(info: HeatmapInfo) -> go.Scatter:
    cells = [(layer, info.pairs[row]) for row, kept in enumerate(info.kept) for layer, yes in enumerate(kept) if yes]
    return go.Scatter(
        x=[layer for layer, _ in cells],
        y=[pair for _, pair in cells],
        mode="markers",
        marker={"symbol": "circle", "size": 6, "color": "#ffffff", "line": {"color": "#1b2430", "width": 1}},
        name="kept by pruning",
        hoverinfo="skip",
        showlegend=True,
    )


def _targets(info: HeatmapInfo) -> go.Scatter:
    # A click on a heatmap cell is not reported by Streamlit; a click on a point is.
    cells = [(layer, row) for row in range(len(info.pairs)) for layer in range(len(info.groups))]
    unseen = {"marker": {"opacity": 0}}
    return go.Scatter(
        x=[layer for layer, _ in cells],
        y=[info.pairs[row] for _, row in cells],
        customdata=[[layer, info.pairs[row]] for layer, row in cells],
        text=[
            f"layer {layer}, {info.pairs[row]}<br>{info.label}: {short(info.values[row][layer])}<br>"
            f"{'kept' if info.kept[row][layer] else 'pruned'}, group {info.groups[layer]}"
            for layer, row in cells
        ],
        mode="markers",
        marker={"symbol": "square", "size": 22, "opacity": 0},
        selected=unseen,
        unselected=unseen,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _group_strip(info: HeatmapInfo) -> go.Heatmap:
    colours = len(GROUP_COLOURS)
    scale = [[edge / colours, GROUP_COLOURS[i]] for i in range(colours) for edge in (i, i + 1)]
    return go.Heatmap(
        z=[[group % colours + 0.5 for group in info.groups]],
        y=[0],
        zmin=0,
        zmax=colours,
        colorscale=scale,
        showscale=False,
        xgap=1,
        text=[[str(group) for group in info.groups]],
        hovertemplate="layer %{x}, group %{text}<extra></extra>",
    )


def _group_numbers(info: HeatmapInfo) -> go.Scatter:
    """Each layer's group; neighbours stand a line apart where the cells are narrow."""
    layers = len(info.groups)
    apart = 0.24 if layers > _ONE_LINE else 0.0
    return go.Scatter(
        x=list(range(layers)),
        y=[-apart if layer % 2 else apart for layer in range(layers)],
        text=[str(group) if layers <= _TWO_LINES else "" for group in info.groups],
        mode="text",
        textfont={"color": "#1b2430", "size": 11},
        hoverinfo="skip",
        showlegend=False,
        name="groups",
    )
