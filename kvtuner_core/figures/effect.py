"""Whether a layer's output error tells what quantising it does end to end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.study import SweepResult
from kvtuner_core.figures.style import BLUE, axis, floored, layout, log_floor
from kvtuner_core.tuning.correlation import RankCorrelation, rank_correlation
from kvtuner_core.tuning.profiles import by_layer

_NAME = (0.06, 0.055)
"""Width and height of a layer's number as shares of the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectInfo:
    """Each layer's error and effect, summed over the pairs, and how alike they rank the layers.

    Attributes:
        errors: Per layer, the output errors of all pairs summed.
        kls: Per layer, the KLs of all pairs summed, in nats per token.
        correlation: Spearman's rank correlations.
    """

    errors: tuple[float, ...]
    kls: tuple[float, ...]
    correlation: RankCorrelation

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return [
            {
                "Layer": layer,
                "Output error, sum over pairs": error,
                "KL, sum over pairs (nats per token)": kl,
                "Rank correlation within the layer": within,
            }
            for layer, (error, kl, within) in enumerate(
                zip(self.errors, self.kls, self.correlation.within, strict=True)
            )
        ]


def effect_info(sweep: SweepResult) -> EffectInfo:
    """The numbers of a sweep.

    Raises:
        InputError: If a profile is missing.
    """
    tables = by_layer(sweep.profiles)
    return EffectInfo(
        errors=tuple(sum(profile.output_error for profile in table.values()) for table in tables),
        kls=tuple(sum(profile.kl for profile in table.values()) for table in tables),
        correlation=rank_correlation(sweep.profiles),
    )


def correlation_info(sweep: SweepResult) -> str:
    """Spearman's rank correlation between layers of output error and KL as text; ``n/a`` if undefined."""
    value = rank_correlation(sweep.profiles).layers
    return "n/a" if value is None else f"{value:.2f}"


def effect_figure(info: EffectInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """A point per layer: its output error against its KL; custom data are the layer.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    floor_x, floor_y = log_floor(list(info.errors)), log_floor(list(info.kls))
    figure = go.Figure(
        go.Scatter(
            x=[floored(value, floor_x) for value in info.errors],
            y=[floored(value, floor_y) for value in info.kls],
            text=_names(info, floor_x, floor_y),
            customdata=[[layer] for layer in range(len(info.errors))],
            mode="markers+text",
            textposition="top center",
            textfont={"size": 10},
            marker={"color": BLUE, "size": 7},
            hovertemplate="layer %{customdata[0]}<br>output error %{x:.3g}<br>KL %{y:.3g} nats/token<extra></extra>",
        )
    )
    value = info.correlation.layers
    title = "Rank correlation of layers: " + ("undefined" if value is None else f"{value:.2f}")
    figure.update_layout(
        **layout(dark=dark, height=height, title=title),
        xaxis=axis("Output error, sum over pairs, log", log=True) | {"dtick": None},
        yaxis=axis("KL (nats per token), sum over pairs, log", log=True),
    )
    return figure


def _names(info: EffectInfo, floor_x: float, floor_y: float) -> list[str]:
    """The layers' numbers, without those that would lie on another; hovering shows them all."""
    places = list(zip(_shares(info.errors, floor_x), _shares(info.kls, floor_y), strict=True))
    named: list[tuple[float, float]] = []
    names = []
    for layer, place in enumerate(places):
        free = all(abs(place[0] - x) >= _NAME[0] or abs(place[1] - y) >= _NAME[1] for x, y in named)
        names.append(str(layer) if free else "")
        named += [place] if free else []
    return names


def _shares(values: Sequence[float], floor: float) -> list[float]:
    logs = [math.log10(floored(value, floor) or floor) for value in values]
    low, high = min(logs), max(logs)
    return [(value - low) / (high - low) if high > low else 0.5 for value in logs]
