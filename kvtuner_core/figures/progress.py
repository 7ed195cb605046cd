"""A search while it runs: its candidates and the front so far; the hypervolume over the evaluations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import Candidate, CandidateOrigin
from kvtuner_core.figures.style import BLUE, TEAL, axis, empty_figure, floored, layout, log_floor, short
from kvtuner_core.tuning.front import dominated_share, pareto_front

EARLY_TO_LATE = ((0.0, "#b4bcc6"), (0.5, "#c98f3a"), (1.0, "#8f3f14"))
"""From grey to brown; every step is seen on white."""

EARLY_TO_LATE_DARK = ((0.0, "#7d8894"), (0.5, "#d59a45"), (1.0, "#ffd89a"))
"""From grey to cream; every step is seen on black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressInfo:
    """Numbers of a search so far, in order of evaluation.

    Attributes:
        orders: Position of each candidate.
        bits: Effective bits.
        values: The objective on calibration prompts.
        front: Whether it is on the front of all of them.
        hypervolumes: Share of the plane that the candidates up to here dominate, 0 to 1.
        objective: What is minimised.
    """

    orders: tuple[int, ...]
    bits: tuple[float, ...]
    values: tuple[float, ...]
    front: tuple[bool, ...]
    hypervolumes: tuple[float, ...]
    objective: Objective = Objective.MEAN_KL

    def rows(self) -> list[dict[str, Any]]:
        """One row per evaluation."""
        columns = (self.orders, self.bits, self.values, self.front, self.hypervolumes)
        return [
            {
                "Evaluation": order + 1,
                "Effective bits": bits,
                f"{self.objective.label}, calibration ({self.objective.unit})": value,
                "On the front": front,
                "Hypervolume (share)": volume,
            }
            for order, bits, value, front, volume in zip(*columns, strict=True)
        ]

    def volume_rows(self) -> list[dict[str, Any]]:
        """One row per evaluation, with nothing but the hypervolume after it."""
        return [
            {"Evaluation": order + 1, "Hypervolume (share)": volume}
            for order, volume in zip(self.orders, self.hypervolumes, strict=True)
        ]


def progress_info(candidates: Sequence[Candidate], objective: Objective = Objective.MEAN_KL) -> ProgressInfo:
    """The numbers of the searched candidates so far; baselines among them are left out."""
    searched = (candidate for candidate in candidates if candidate.origin is CandidateOrigin.SEARCH)
    ordered = sorted(searched, key=lambda candidate: candidate.order)
    front: list[tuple[float, float]] = []
    volumes: list[float] = []
    for candidate in ordered:
        point = (candidate.effective_bits, candidate.loss(objective))
        if not any(bits <= point[0] and loss <= point[1] for bits, loss in front):
            front = [other for other in front if not (point[0] <= other[0] and point[1] <= other[1])]
            front.append(point)
            volumes.append(dominated_share(front, worst=objective.worst))
        else:
            volumes.append(volumes[-1])
    on_front = {candidate.order for candidate in pareto_front(ordered, objective)}
    return ProgressInfo(
        orders=tuple(candidate.order for candidate in ordered),
        bits=tuple(candidate.effective_bits for candidate in ordered),
        values=tuple(candidate.calibration.interval(objective).mean for candidate in ordered),
        front=tuple(candidate.order in on_front for candidate in ordered),
        hypervolumes=tuple(volumes),
        objective=objective,
    )


def progress_figure(info: ProgressInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """Candidates, early to late, and the front so far.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    if not info.orders:
        return empty_figure("No candidate yet", dark=dark, height=height)
    floor = log_floor([value for value in info.values if math.isfinite(value)])
    zero = f", 0 drawn at {floor:g}" if any(value <= 0 for value in info.values) else ""
    figure = go.Figure((_candidates(info, floor, dark=dark), _front(info, floor)))
    figure.update_layout(
        **layout(dark=dark, height=height),
        xaxis=axis("Effective bits per cached number"),
        yaxis=axis(f"{info.objective.label}, calibration<br>({info.objective.unit}), log{zero}", log=True),
    )
    return figure


def hypervolume_figure(info: ProgressInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """The hypervolume over the evaluations.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    figure = go.Figure(
        go.Scatter(
            x=[order + 1 for order in info.orders],
            y=list(info.hypervolumes),
            mode="lines",
            line={"color": TEAL, "width": 2, "shape": "hv"},
            hovertemplate="after %{x} evaluations: %{y:.4f}<extra></extra>",
            name="hypervolume",
        )
    )
    figure.update_layout(
        **layout(dark=dark, height=height),
        showlegend=False,
        xaxis=axis("Evaluations"),
        yaxis=axis("Hypervolume (share, 0 to 1)"),
    )
    return figure


def _candidates(info: ProgressInfo, floor: float, *, dark: bool) -> go.Scatter:
    # Early ones are pale, late ones strong, on either ground.
    scale = EARLY_TO_LATE_DARK if dark else EARLY_TO_LATE
    return go.Scatter(
        x=list(info.bits),
        y=[floored(value, floor) for value in info.values],
        mode="markers",
        name="candidates, early to late",
        marker={"color": list(info.orders), "colorscale": scale, "size": 7, "opacity": 0.85},
        hovertext=[
            f"evaluation {order + 1}<br>{bits:.2f} effective bits<br>"
            f"{info.objective.label} {short(value)} {info.objective.unit}"
            for order, bits, value in zip(info.orders, info.bits, info.values, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _front(info: ProgressInfo, floor: float) -> go.Scatter:
    rows = zip(info.bits, info.values, info.front, strict=True)
    points = sorted((bits, value) for bits, value, front in rows if front)
    return go.Scatter(
        x=[bits for bits, _ in points],
        y=[floored(value, floor) for _, value in points],
        mode="lines",
        name="front so far",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
