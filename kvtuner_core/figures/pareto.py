"""The trade-off: the objective against effective bits, with intervals, baselines and all candidates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import Candidate, CandidateOrigin, SearchResult
from kvtuner_core.figures.policy_text import summary, wrapped
from kvtuner_core.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    axis,
    empty_figure,
    floored,
    layout,
    log_floor,
    short,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One policy of the chart.

    Attributes:
        id: ``p17`` for the searched candidate of order 17, the pair's name for a baseline.
        kind: ``front``, ``candidate`` (dominated) or ``baseline``.
        policy: The whole policy in one line.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: With them.
        calibration: The objective on the prompts the search saw.
        evaluation: The objective on prompts it did not see, or ``None``.
    """

    id: str
    kind: str
    policy: str
    nominal_bits: float
    effective_bits: float
    calibration: Interval
    evaluation: Interval | None

    def value(self, seen: str) -> Interval:
        """The objective on the prompts asked for, or on the calibration prompts where there is no other."""
        return self.evaluation if seen == "evaluation" and self.evaluation else self.calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoInfo:
    """Numbers of the chart.

    Attributes:
        seen: ``evaluation`` or ``calibration``: which prompts the front and the baselines show.
        points: All policies; the front first, fewest bits first, then baselines, then the others.
        floor: Where the logarithmic axis draws a value of 0 or less.
        objective: What was minimised.
    """

    seen: str
    points: tuple[ParetoPoint, ...]
    floor: float
    objective: Objective = Objective.MEAN_KL

    def of(self, kind: str) -> tuple[ParetoPoint, ...]:
        """The points of one kind."""
        return tuple(point for point in self.points if point.kind == kind)

    def rows(self) -> list[dict[str, Any]]:
        """One row per policy of the front and per baseline."""
        return [self._row(point) for point in self.points if point.kind != "candidate"]

    def all_rows(self) -> list[dict[str, Any]]:
        """One row per policy, dominated ones included."""
        return [self._row(point) for point in self.points]

    def _row(self, point: ParetoPoint) -> dict[str, Any]:
        evaluation, objective = point.evaluation, self.objective
        return {
            "Id": point.id,
            "Kind": point.kind,
            "Effective bits": point.effective_bits,
            "Nominal bits": point.nominal_bits,
            f"{objective.label}, evaluation ({objective.unit})": evaluation.mean if evaluation else None,
            "95% low": evaluation.low if evaluation else None,
            "95% high": evaluation.high if evaluation else None,
            f"{objective.label}, calibration ({objective.unit})": point.calibration.mean,
            "Policy": point.policy,
        }


def pareto_info(result: SearchResult, *, seen: str = "evaluation") -> ParetoInfo:
    """The numbers of a search.

    Args:
        result: The search.
        seen: ``evaluation`` for the prompts the search did not see, else ``calibration``.
    """
    on_front = {candidate.order for candidate in result.front}
    others = (candidate for candidate in result.candidates if candidate.order not in on_front)
    objective = result.spec.objective
    points = (
        *_points(result.front, "front", objective),
        *_points(result.baselines, "baseline", objective),
        *_points(others, "candidate", objective),
    )
    floor = log_floor([point.value(seen).mean for point in points])
    return ParetoInfo(seen=seen, points=points, floor=floor, objective=objective)


def _points(candidates: Iterable[Candidate], kind: str, objective: Objective) -> tuple[ParetoPoint, ...]:
    return tuple(
        ParetoPoint(
            id=candidate.policy.name if candidate.origin is CandidateOrigin.BASELINE else f"p{candidate.order}",
            kind=kind,
            policy=summary(candidate.policy),
            nominal_bits=candidate.nominal_bits,
            effective_bits=candidate.effective_bits,
            calibration=candidate.calibration.interval(objective),
            evaluation=candidate.evaluation.interval(objective) if candidate.evaluation else None,
        )
        for candidate in candidates
    )


def pareto_figure(info: ParetoInfo, *, dark: bool = False, picked: str = "", height: int = 460) -> go.Figure:
    """The chart; custom data of a point on the front or of a baseline are its id.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        picked: Id of the policy to ring, or empty.
        height: Height in pixels.
    """
    if not info.points:
        return empty_figure("No candidate yet", dark=dark, height=height)
    figure = go.Figure()
    figure.add_trace(_dominated(info))
    if info.seen == "evaluation":
        figure.add_trace(_calibration_line(info))
    figure.add_trace(_front(info))
    figure.add_trace(_baselines(info))
    ring = [point for point in info.points if point.id == picked]
    if ring:
        figure.add_trace(_ring(info, ring))
    figure.update_layout(
        **layout(dark=dark, height=height),
        xaxis={**axis("Effective bits per cached number"), "range": _range(info)},
        yaxis=axis(_title(info), log=True),
        clickmode="event+select",
    )
    return figure


def _title(info: ParetoInfo) -> str:
    zero = any(not point.value(info.seen).mean > info.floor for point in info.points)
    what = "KL from full precision" if info.objective is Objective.MEAN_KL else info.objective.label
    return f"{what}<br>({info.objective.unit}), log" + (f", 0 drawn at {info.floor:g}" if zero else "")


def _range(info: ParetoInfo) -> list[float]:
    # The unquantised baseline at 16 bits would squeeze everything else; panning shows it.
    bits = [point.effective_bits for point in info.points]
    shown = [value for value in bits if value < 16] or bits
    room = 0.06 * (max(shown) - min(shown)) or 0.5
    return [min(shown) - room, max(shown) + 2 * room]


def _hover(point: ParetoPoint, seen: str, objective: Objective) -> str:
    value = point.value(seen)
    prompts = "evaluation" if seen == "evaluation" and point.evaluation else "calibration"
    other = f" ({short(point.calibration.mean)} on calibration prompts)" if prompts == "evaluation" else ""
    return (
        f"<b>{point.id}</b>, {point.effective_bits:.2f} effective bits ({point.nominal_bits:.2f} nominal)<br>"
        f"{objective.label} {short(value.mean)} {objective.unit}, 95% {short(value.low)} to {short(value.high)}, "
        f"{prompts} prompts{other}<br>"
        f"{wrapped(point.policy)}"
    )


def _trace(info: ParetoInfo, points: Iterable[ParetoPoint], *, seen: str, bars: bool) -> dict[str, Any]:
    chosen = list(points)
    values = [point.value(seen) for point in chosen]
    drawn = [floored(value.mean, info.floor) for value in values]
    trace: dict[str, Any] = {
        "x": [point.effective_bits for point in chosen],
        "y": drawn,
        "hovertext": [_hover(point, seen, info.objective) for point in chosen],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    if bars:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_length(value.high, y) for value, y in zip(values, drawn, strict=True)],
            "arrayminus": [_length(y, max(value.low, info.floor)) for value, y in zip(values, drawn, strict=True)],
            "thickness": 1,
            "width": 3,
        }
    return trace


def _length(high: float | None, low: float | None) -> float:
    length = high - low if high is not None and low is not None else 0.0
    return max(0.0, length) if math.isfinite(length) else 0.0


def _dominated(info: ParetoInfo) -> go.Scatter:
    return go.Scatter(
        **_trace(info, info.of("candidate"), seen="calibration", bars=False),
        mode="markers",
        name="others",
        marker={"color": GREY, "size": 5, "opacity": 0.35},
    )


def _calibration_line(info: ParetoInfo) -> go.Scatter:
    front = info.of("front")
    return go.Scatter(
        x=[point.effective_bits for point in front],
        y=[floored(point.calibration.mean, info.floor) for point in front],
        mode="lines",
        name="front, calibration",
        line={"color": BLUE, "width": 1, "dash": "dot"},
        # It lies close to the front on evaluation prompts, whose points are the ones to click.
        hoverinfo="skip",
    )


def _front(info: ParetoInfo) -> go.Scatter:
    front = info.of("front")
    return go.Scatter(
        **_trace(info, front, seen=info.seen, bars=True),
        mode="lines+markers",
        name=f"front, {info.seen}, 95%",
        line={"color": BLUE, "width": 1.6},
        marker={"color": BLUE, "size": 8},
        unselected={"marker": {"opacity": 1}},
        customdata=[[point.id] for point in front],
    )


def _baselines(info: ParetoInfo) -> go.Scatter:
    points = info.of("baseline")
    return go.Scatter(
        **_trace(info, points, seen=info.seen, bars=True),
        mode="markers+text",
        name="uniform policies",
        text=[point.id for point in points],
        textposition="top right",
        textfont={"size": 12},
        marker={"color": ORANGE, "size": 10, "symbol": "diamond"},
        unselected={"marker": {"opacity": 1}, "textfont": {"color": INK}},
        customdata=[[point.id] for point in points],
    )


def _ring(info: ParetoInfo, points: list[ParetoPoint]) -> go.Scatter:
    trace = _trace(info, points, seen=info.seen, bars=False)
    return go.Scatter(
        x=trace["x"],
        y=trace["y"],
        mode="markers",
        name="chosen",
        marker={"size": 17, "symbol": "circle-open", "color": RED, "line": {"width": 3, "color": RED}},
        hoverinfo="skip",
    )
