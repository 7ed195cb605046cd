"""Policies as strips: the key and value bits of every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import ALLOWED_BITS
from kvtuner_core.figures.style import BITS_COLOURS, BITS_TEXT, axis, empty_figure, layout

_MOST_NUMBERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One policy.

    Attributes:
        name: Its label.
        pairs: Name of each layer's pair, or of its heads' pairs.
        keys: Key bits of each layer; one number, or one per KV head.
        values: Value bits of each layer, likewise.
    """

    name: str
    pairs: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    values: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StripInfo:
    """Numbers of the strips, in the order given."""

    strips: tuple[Strip, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer, one column per policy."""
        longest = max((len(strip.pairs) for strip in self.strips), default=0)
        return [
            {"Layer": layer, **{strip.name: strip.pairs[layer] for strip in self.strips if layer < len(strip.pairs)}}
            for layer in range(longest)
        ]


def strip_info(policies: Sequence[tuple[str, KVPolicy]]) -> StripInfo:
    """The bits of named policies; names that occur again are numbered."""
    seen: dict[str, int] = {}
    strips = []
    for name, policy in policies:
        seen[name] = seen.get(name, 0) + 1
        strips.append(
            Strip(
                name=name if seen[name] == 1 else f"{name} ({seen[name]})",
                pairs=tuple(layer.name for layer in policy.layers),
                keys=tuple(_side(layer, keys=True) for layer in policy.layers),
                values=tuple(_side(layer, keys=False) for layer in policy.layers),
            )
        )
    return StripInfo(strips=tuple(strips))


def _side(layer: LayerPrecision, *, keys: bool) -> tuple[int, ...]:
    return tuple(pair.key_bits if keys else pair.value_bits for pair in layer.pairs)


def strip_figure(info: StripInfo, *, dark: bool = False, height: int | None = None) -> go.Figure:
    """Two rows of coloured cells per policy, K above V; heads of one layer are coloured by their mean.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels; by default it follows the number of policies.
    """
    if not info.strips:
        return empty_figure("No policy chosen", dark=dark, height=height or 120)
    figure = go.Figure()
    ticks: list[tuple[float, str]] = []
    for number, strip in enumerate(info.strips):
        top = number * 2.5
        for offset, (side, bits) in enumerate((("K", strip.keys), ("V", strip.values))):
            figure.add_trace(_row(strip, side, bits, top + offset))
            ticks.append((top + offset, f"{strip.name}  {side}" if side == "K" else side))
    used = {_nearest(cell) for strip in info.strips for side in (strip.keys, strip.values) for cell in side}
    for width in ALLOWED_BITS:
        if width in used:
            figure.add_trace(_legend(width))
    figure.update_layout(
        **layout(dark=dark, height=height or 96 + 62 * len(info.strips)),
        uniformtext={"minsize": 9, "mode": "hide"},
        xaxis={**axis("Layer"), "showgrid": False, "range": [-0.5, max(len(s.pairs) for s in info.strips) - 0.5]},
        yaxis={
            "tickvals": [place for place, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "range": [ticks[-1][0] + 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
    )
    return figure


def _nearest(bits: tuple[int, ...]) -> int:
    mean = sum(bits) / len(bits)
    return min(ALLOWED_BITS, key=lambda width: abs(width - mean))


def _row(strip: Strip, side: str, bits: tuple[tuple[int, ...], ...], place: float) -> go.Bar:
    nearest = [_nearest(cell) for cell in bits]
    texts = ["/".join(str(width) for width in cell) if len(cell) > 1 else str(cell[0]) for cell in bits]
    return go.Bar(
        x=list(range(len(bits))),
        y=[0.92] * len(bits),
        base=[place - 0.46] * len(bits),
        width=0.94,
        marker={"color": [BITS_COLOURS[width] for width in nearest], "line": {"width": 0}},
        text=texts if len(bits) <= _MOST_NUMBERS else None,
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"size": 11, "color": [BITS_TEXT[width] for width in nearest]},
        customdata=[[strip.name, pair] for pair in strip.pairs],
        hovertemplate=f"%{{customdata[0]}}<br>layer %{{x}}: %{{customdata[1]}}<extra>{side}</extra>",
        showlegend=False,
        offsetgroup="cells",
        constraintext="inside",
    )


def _legend(bits: int) -> go.Scatter:
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"symbol": "square", "size": 12, "color": BITS_COLOURS[bits]},
        name="16 bits, not quantised" if bits == 16 else f"{bits} bits",
    )
