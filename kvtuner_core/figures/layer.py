"""One layer under every pair: what pruning saw, and what quantising it does end to end."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvtuner_core.domain.metrics import ErrorProfile
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.errors import InputError
from kvtuner_core.figures import metrics
from kvtuner_core.figures.style import BLUE, GREY, axis, floored, layout, log_floor, short
from kvtuner_core.tuning.profiles import by_layer, widest_first

_PANELS = ("output_error", "kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """Numbers of one layer.

    Attributes:
        layer: Its index.
        profiles: One per pair, most bits first.
        kept: The pairs that pruning kept.
    """

    layer: int
    profiles: tuple[ErrorProfile, ...]
    kept: tuple[PrecisionPair, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per pair."""
        return [
            {
                "Pair": profile.pair.name,
                "Mean bits": profile.pair.nominal_bits,
                "Kept": profile.pair in self.kept,
                **{label: metrics.value(profile, metric) for metric, label in metrics.METRICS.items()},
            }
            for profile in self.profiles
        ]


def layer_info(sweep: SweepResult, layer: int) -> LayerInfo:
    """The numbers of one layer of a sweep.

    Raises:
        InputError: If there is no such layer, or a profile is missing.
    """
    tables = by_layer(sweep.profiles)
    if not 0 <= layer < len(tables):
        raise InputError(f"A layer is a number from 0 to {len(tables) - 1}; got {layer}.")
    table = tables[layer]
    profiles = tuple(table[pair] for pair in widest_first(table))
    return LayerInfo(layer=layer, profiles=profiles, kept=sweep.space.kept[layer])


def layer_figure(info: LayerInfo, *, dark: bool = False, height: int = 460) -> go.Figure:
    """Output error and KL of each pair over its mean bits; the kept pairs are joined.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, metric in enumerate(_PANELS, start=1):
        values = [metrics.value(profile, metric) for profile in info.profiles]
        floor = log_floor(values)
        title = metrics.label(metric) + (f", 0 drawn at {floor:g}" if any(value <= 0 for value in values) else "")
        for kept in (False, True):
            figure.add_trace(_points(info, metric, floor, kept=kept, legend=row == 1), row=row, col=1)
        figure.update_yaxes(axis(title, log=True), row=row, col=1)
    figure.update_layout(**layout(dark=dark, height=height, title=f"Layer {info.layer}"))
    figure.update_xaxes(axis("Mean bits, scales left out"), row=2, col=1)
    figure.update_xaxes({**axis(""), "title": None}, row=1, col=1)
    return figure


def _points(info: LayerInfo, metric: str, floor: float, *, kept: bool, legend: bool) -> go.Scatter:
    chosen = [profile for profile in info.profiles if (profile.pair in info.kept) == kept]
    places = _places(info, metric)
    return go.Scatter(
        x=[profile.pair.nominal_bits for profile in chosen],
        y=[floored(metrics.value(profile, metric), floor) for profile in chosen],
        mode="lines+markers+text" if kept else "markers+text",
        text=[profile.pair.name for profile in chosen],
        textposition=[places[profile.pair] for profile in chosen],
        textfont={"size": 11, "color": None if kept else GREY},
        cliponaxis=False,
        line={"color": BLUE, "width": 1.5},
        marker={"color": BLUE if kept else GREY, "size": 8, "symbol": "circle" if kept else "circle-open"},
        name="kept" if kept else "pruned",
        legendgroup="kept" if kept else "pruned",
        showlegend=legend,
        customdata=[[profile.layer, profile.pair.name] for profile in chosen],
        hovertext=[_hover(profile) for profile in chosen],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _places(info: LayerInfo, metric: str) -> dict[PrecisionPair, str]:
    """Where each pair's name stands: of pairs of equal bits the highest above, the lowest below, others beside."""
    columns: dict[float, list[ErrorProfile]] = {}
    for profile in sorted(info.profiles, key=lambda profile: metrics.value(profile, metric), reverse=True):
        columns.setdefault(profile.pair.nominal_bits, []).append(profile)
    places: dict[PrecisionPair, str] = {}
    for column in columns.values():
        places.update((profile.pair, "middle right") for profile in column)
        places[column[-1].pair] = "bottom center"
        places[column[0].pair] = "top center"
    return places


def _hover(profile: ErrorProfile) -> str:
    lines = [f"{label}: {short(metrics.value(profile, metric))}" for metric, label in metrics.METRICS.items()]
    return "<br>".join([f"<b>{profile.pair.name}</b>", *lines])
