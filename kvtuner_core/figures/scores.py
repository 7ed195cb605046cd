"""A sweep's scores of its layers side by side: over the layers, and how alike they rank."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.scores import ScoreName
from kvtuner_core.domain.study import SweepResult
from kvtuner_core.figures.style import BLUE, GREY, ORANGE, RED, TEAL, axis, decade_ticks, layout
from kvtuner_core.tuning.score_rows import ScoreRow, score_rows, side_values, table_of

LABELS = MappingProxyType(
    {
        ScoreName.KL: "Isolated KL",
        ScoreName.FISHER_ERROR: "Fisher error",
        ScoreName.GRADIENT_ERROR: "Gradient x error",
        ScoreName.OUTPUT_ERROR: "Output error",
        ScoreName.GRADIENT_NORM: "Gradient norm",
        ScoreName.WEIGHT_NORM: "Weight norm",
    }
)
"""Short readable names."""

_LINES = MappingProxyType(
    {
        ScoreName.KL: (BLUE, "solid"),
        ScoreName.FISHER_ERROR: (TEAL, "solid"),
        ScoreName.GRADIENT_ERROR: (TEAL, "dot"),
        ScoreName.OUTPUT_ERROR: (ORANGE, "solid"),
        ScoreName.GRADIENT_NORM: (RED, "dash"),
        ScoreName.WEIGHT_NORM: (GREY, "dash"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresInfo:
    """Numbers of both charts and their tables.

    Attributes:
        names: The scores, isolated KL first.
        shares: Per score, each layer's share of it, mean of all pairs.
        correlations: Per score, its rank correlation to every score.
        norms: Per norm that a sweep has, its name, and the keys' and values' norm of each layer.
        scored: One row per score: what it cost and would pick.
    """

    names: tuple[ScoreName, ...]
    shares: tuple[tuple[float, ...], ...]
    correlations: tuple[tuple[float | None, ...], ...]
    norms: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    scored: tuple[ScoreRow, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return [
            {
                "Layer": layer,
                **{f"{LABELS[name]}, share": share[layer] for name, share in zip(self.names, self.shares, strict=True)},
                **{f"{label}, W_k": keys[layer] for label, keys, _ in self.norms},
                **{f"{label}, W_v": values[layer] for label, _, values in self.norms},
            }
            for layer in range(len(self.shares[0]))
        ]

    def correlation_rows(self) -> list[dict[str, Any]]:
        """One row per score, one column per score."""
        return [
            {"Score": LABELS[name], **{LABELS[other]: value for other, value in zip(self.names, row, strict=True)}}
            for name, row in zip(self.names, self.correlations, strict=True)
        ]

    def pick_rows(self) -> list[dict[str, Any]]:
        """One row per score: its cost, how it ranks, and for every bound the bits and the KL of what it would pick."""
        rows: list[dict[str, Any]] = []
        for row in self.scored:
            cells: dict[str, Any] = {
                "Score": LABELS[row.name],
                "Cost (s)": None if row.seconds is None else round(row.seconds, 2),
                "Rank correlation to KL": None if row.correlation is None else round(row.correlation, 3),
            }
            for pick in row.picks:
                at = f"{pick.max_bits:.2f}"
                cells[f"Bits at {at}"] = round(pick.effective_bits, 3)
                cells[f"KL at {at}, calibration (nats)"] = pick.calibration.kl.mean
                if pick.evaluation:
                    cells[f"KL at {at}, evaluation (nats)"] = pick.evaluation.kl.mean
            rows.append(cells)
        return rows


def scores_info(sweep: SweepResult) -> ScoresInfo:
    """The numbers of a sweep.

    Raises:
        InputError: If a profile is missing.
    """
    table = table_of(sweep)
    names = table.names
    norms = []
    for name in (ScoreName.GRADIENT_NORM, ScoreName.WEIGHT_NORM):
        sides = side_values(sweep.scores, name) if sweep.scores else None
        if sides is not None:
            norms.append((LABELS[name], *sides))
    return ScoresInfo(
        names=names,
        shares=tuple(table.layers(name) for name in names),
        correlations=tuple(tuple(table.correlation(one, other) for other in names) for one in names),
        norms=tuple(norms),
        scored=score_rows(sweep),
    )


def scores_figure(info: ScoresInfo, *, dark: bool = False, height: int = 400) -> go.Figure:
    """A line per score over the layers, each as the layer's share of its sum.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    figure = go.Figure()
    for name, share in zip(info.names, info.shares, strict=True):
        colour, dash = _LINES[name]
        figure.add_trace(
            go.Scatter(
                x=list(range(len(share))),
                y=[value if value > 0 else None for value in share],
                mode="lines+markers",
                name=LABELS[name],
                line={"color": colour, "dash": dash, "width": 2.4 if name is ScoreName.KL else 1.6},
                marker={"size": 4},
                hovertemplate=f"layer %{{x}}, {LABELS[name]}<br>share %{{y:.3g}}<extra></extra>",
            )
        )
    figure.update_layout(
        **layout(dark=dark, height=height),
        xaxis=axis("Layer"),
        yaxis=axis("Share of the score, log", log=True) | _ticks([value for share in info.shares for value in share]),
    )
    return figure


def _ticks(values: list[float]) -> dict[str, Any]:
    """Round numbers: shares often stay within a decade, of which Plotly would write every digit."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {}
    ticks = decade_ticks(min(positive), max(positive))
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def correlations_figure(info: ScoresInfo, *, dark: bool = False, height: int = 400) -> go.Figure:
    """How alike every two scores rank the layers, with the numbers written on the cells.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    labels = [LABELS[name] for name in info.names]
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in info.correlations],
            x=labels,
            y=labels,
            zmin=-1,
            zmax=1,
            colorscale=[[0.0, "#d98b6f"], [0.5, "#dfe3e8"], [1.0, "#6fa8dc"]],
            showscale=False,
            xgap=1,
            ygap=1,
            text=[["n/a" if value is None else f"{value:.2f}" for value in row] for row in info.correlations],
            texttemplate="%{text}",
            textfont={"color": "#1b2430", "size": 10},
            hovertemplate="%{y} with %{x}: %{text}<extra></extra>",
        )
    )
    figure.update_layout(**layout(dark=dark, height=height, title="Rank correlation over layers"))
    figure.update_xaxes(showgrid=False, tickfont={"size": 11}, tickangle=-60)
    figure.update_yaxes(showgrid=False, autorange="reversed", tickfont={"size": 11})
    return figure
