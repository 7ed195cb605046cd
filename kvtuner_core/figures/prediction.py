"""The measured objective against what the isolated KLs of the layers add up to."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import CandidateOrigin, SearchResult
from kvtuner_core.figures.style import BLUE, GREY, ORANGE, axis, empty_figure, floored, layout, log_floor, short
from kvtuner_core.tuning.prediction import prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """One policy of the chart.

    Attributes:
        id: ``p17`` for the searched candidate of order 17, the pair's name for a baseline.
        baseline: Whether it is a uniform baseline.
        effective_bits: Its bits.
        predicted: Sum of the isolated KLs, nats per token.
        measured: The objective on calibration prompts.
    """

    id: str
    baseline: bool
    effective_bits: float
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionInfo:
    """Numbers of the chart.

    Attributes:
        points: Searched policies in order of evaluation, then baselines.
        rank_correlation: Spearman's over all of them, or ``None``.
        ratio: Median of measured / predicted, or ``None``.
        objective: What was minimised.
    """

    points: tuple[PredictedPoint, ...]
    rank_correlation: float | None
    ratio: float | None
    objective: Objective = Objective.MEAN_KL

    def rows(self) -> list[dict[str, Any]]:
        """One row per policy."""
        return [
            {
                "Id": point.id,
                "Effective bits": point.effective_bits,
                "Predicted KL (nats per token)": point.predicted,
                f"Measured {self.objective.with_unit}": point.measured,
                "Measured / predicted": point.measured / point.predicted if point.predicted > 0 else None,
            }
            for point in self.points
        ]

    @property
    def verdict(self) -> str:
        """What the numbers say about the model, in one sentence."""
        if self.rank_correlation is None or self.ratio is None:
            return "Too few policies to say whether layers interact."
        order = "hardly change" if self.rank_correlation >= 0.98 else "change"
        return (
            f"Rank correlation {self.rank_correlation:.3f}, measured / predicted {self.ratio:.2f} (median): "
            f"interactions between layers {order} the order of policies."
        )


def prediction_info(result: SearchResult) -> PredictionInfo:
    """The numbers of a search, on calibration prompts."""
    found = prediction(result)
    rows = zip(found.candidates, found.predicted, found.measured, strict=True)
    return PredictionInfo(
        points=tuple(
            PredictedPoint(
                id=item.policy.name if item.origin is CandidateOrigin.BASELINE else f"p{item.order}",
                baseline=item.origin is CandidateOrigin.BASELINE,
                effective_bits=item.effective_bits,
                predicted=predicted,
                measured=measured,
            )
            for item, predicted, measured in rows
        ),
        rank_correlation=found.rank_correlation,
        ratio=found.ratio,
        objective=result.spec.objective,
    )


def prediction_figure(info: PredictionInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """Measured against predicted KL, both on logarithmic axes, with the line on which they are equal.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    if not info.points:
        return empty_figure("No policy whose pairs were all swept", dark=dark, height=height)
    values = [value for point in info.points for value in (point.predicted, point.measured)]
    floor = log_floor(values)
    top = max(*values, floor)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[floor, top], y=[floor, top], mode="lines", name="no interaction", hoverinfo="skip",
            line={"color": GREY, "width": 1, "dash": "dot"},
        )
    )  # fmt: skip
    searched = [point for point in info.points if not point.baseline]
    figure.add_trace(_points(searched, floor, name="searched policies", marker={"color": BLUE, "size": 6}))
    uniform = [point for point in info.points if point.baseline]
    trace = _points(uniform, floor, name="uniform policies", marker={"color": ORANGE, "size": 10, "symbol": "diamond"})
    trace.update(mode="markers+text", text=[point.id for point in uniform], textposition="bottom right")
    trace.update(textfont={"size": 12})
    figure.add_trace(trace)
    figure.update_layout(
        **layout(dark=dark, height=height),
        xaxis=axis("Sum of isolated KLs (nats per token), log", log=True),
        yaxis=axis(f"Measured {info.objective.label}, calibration ({info.objective.unit}), log", log=True),
    )
    return figure


def _points(points: list[PredictedPoint], floor: float, *, name: str, marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[floored(point.predicted, floor) for point in points],
        y=[floored(point.measured, floor) for point in points],
        mode="markers",
        name=name,
        marker=marker,
        hovertext=[
            f"<b>{point.id}</b>, {point.effective_bits:.2f} effective bits<br>"
            f"predicted {short(point.predicted)} nats per token, measured {short(point.measured)}"
            for point in points
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
