"""One error over the layers, a line a pair."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.figures import metrics
from kvtuner_core.figures.style import BITS_COLOURS, axis, layout
from kvtuner_core.tuning.profiles import by_layer, widest_first

_DASHES = MappingProxyType({16: "solid", 8: "solid", 4: "dash", 3: "dashdot", 2: "dot"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesInfo:
    """Numbers of the lines.

    Attributes:
        label: The metric with its unit.
        pairs: The pairs, most bits first.
        values: Per pair, the metric of each layer.
    """

    label: str
    pairs: tuple[PrecisionPair, ...]
    values: tuple[tuple[float, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer, one column per pair."""
        return [
            {"Layer": layer, **{pair.name: line[layer] for pair, line in zip(self.pairs, self.values, strict=True)}}
            for layer in range(len(self.values[0]))
        ]


def lines_info(sweep: SweepResult, metric: str) -> LinesInfo:
    """The numbers of one metric of a sweep.

    Raises:
        InputError: If there is no such metric, or a profile is missing.
    """
    label = metrics.label(metric)
    tables = by_layer(sweep.profiles)
    pairs = widest_first(tables[0])
    values = tuple(tuple(metrics.value(table[pair], metric) for table in tables) for pair in pairs)
    return LinesInfo(label=label, pairs=pairs, values=values)


def lines_figure(info: LinesInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """A line per pair: the key bits give the colour, the value bits the dashes; zeros are left out.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    figure = go.Figure()
    for pair, line in zip(info.pairs, info.values, strict=True):
        drawn = [value if math.isfinite(value) and value > 0 else None for value in line]
        figure.add_trace(
            go.Scatter(
                x=list(range(len(line))),
                y=drawn,
                mode="lines+markers",
                name=pair.name,
                line={"color": BITS_COLOURS[pair.key_bits], "dash": _DASHES[pair.value_bits], "width": 1.8},
                marker={"size": 4},
                hovertemplate=f"layer %{{x}}, {pair.name}<br>{info.label}: %{{y:.3g}}<extra></extra>",
            )
        )
    figure.update_layout(
        **layout(dark=dark, height=height), xaxis=axis("Layer"), yaxis=axis(f"{info.label}, log scale", log=True)
    )
    return figure
