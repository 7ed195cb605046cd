"""The fronts of several searches of the same model and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import SearchResult
from kvtuner_core.figures.style import GROUP_COLOURS, ORANGE, axis, empty_figure, floored, layout, log_floor, short
from kvtuner_core.tuning.comparison import SolverRow, compare

_DASHES = MappingProxyType({0: "solid", 1: "dash", 2: "dot", 3: "dashdot"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverFront:
    """One front of the chart.

    Attributes:
        label: Strategy and number of evaluations.
        points: Effective bits and the objective on evaluation prompts, fewest bits first.
    """

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolversInfo:
    """Numbers of the chart and its table.

    Attributes:
        solvers: One row per search, the best first.
        fronts: The front of each strategy's best search, in the same order.
        uniform: Effective bits and the objective of the uniform policies, by their pair.
        objective: What was minimised.
    """

    solvers: tuple[SolverRow, ...]
    fronts: tuple[SolverFront, ...]
    uniform: tuple[tuple[str, float, float], ...]
    objective: Objective = Objective.MEAN_KL

    def rows(self) -> list[dict[str, Any]]:
        """One row per search."""
        return [
            {
                "Strategy": row.strategy,
                "Evaluations": row.evaluations,
                "Hypervolume, equal evaluations": round(row.at_equal, 5),
                "Hypervolume": round(row.hypervolume, 5),
                "Hypervolume, evaluation prompts": round(row.unseen, 5),
                "Regret": round(row.regret, 5),
                "On the front": row.front,
                "Scoring (s)": round(row.seconds, 1),
                "Seed": row.seed,
                "Run": row.run,
            }
            for row in self.solvers
        ]

    def front_rows(self) -> list[dict[str, Any]]:
        """One row per policy of the fronts."""
        return [
            {
                "Search": front.label,
                "Effective bits": bits,
                f"{self.objective.label}, evaluation ({self.objective.unit})": value,
            }
            for front in self.fronts
            for bits, value in front.points
        ]


def solvers_info(results: Sequence[SearchResult]) -> SolversInfo:
    """The numbers of searches that are comparable with each other."""
    rows = compare(results)
    objective = results[0].spec.objective if results else Objective.MEAN_KL
    by_run = {result.run: result for result in results}
    best = {row.strategy: row for row in reversed(rows)}
    fronts = tuple(
        SolverFront(
            label=f"{row.strategy}, {row.evaluations}",
            points=tuple((item.effective_bits, item.value(objective).mean) for item in by_run[row.run].front),
        )
        for row in rows
        if best[row.strategy] is row
    )
    baselines = results[0].baselines if results else ()
    quantised = (item for item in baselines if not item.policy.is_full)
    uniform = tuple((item.policy.name, item.effective_bits, item.value(objective).mean) for item in quantised)
    return SolversInfo(solvers=rows, fronts=fronts, uniform=uniform, objective=objective)


def solvers_figure(info: SolversInfo, *, dark: bool = False, height: int = 380) -> go.Figure:
    """A line per strategy, the objective on evaluation prompts against effective bits, with the uniform policies.

    Args:
        info: The numbers.
        dark: Whether the ground behind is dark.
        height: Height in pixels.
    """
    if not info.fronts:
        return empty_figure("No finished search", dark=dark, height=height)
    figure = go.Figure()
    floor = log_floor([kl for front in info.fronts for _, kl in front.points])
    for place, front in enumerate(info.fronts):
        figure.add_trace(
            go.Scatter(
                x=[bits for bits, _ in front.points],
                y=[floored(kl, floor) for _, kl in front.points],
                mode="lines+markers",
                name=front.label,
                line={
                    "color": GROUP_COLOURS[place % len(GROUP_COLOURS)],
                    "dash": _DASHES[place // len(GROUP_COLOURS) % len(_DASHES)],
                    "width": 1.8,
                },
                marker={"size": 4},
                hovertext=[
                    f"{front.label}<br>{bits:.2f} bits, {info.objective.label} {short(kl)}" for bits, kl in front.points
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[bits for _, bits, _ in info.uniform],
            y=[floored(kl, floor) for _, _, kl in info.uniform],
            mode="markers+text",
            name="uniform policies",
            text=[name for name, _, _ in info.uniform],
            textposition="top right",
            textfont={"size": 12},
            marker={"color": ORANGE, "size": 9, "symbol": "diamond"},
            hoverinfo="skip",
        )
    )
    figure.update_layout(
        **{**layout(dark=dark, height=height), "legend": {"x": 1.01, "y": 1, "font": {"size": 12}}},
        xaxis=axis("Effective bits per cached number"),
        yaxis=axis(f"{info.objective.label}, evaluation prompts ({info.objective.unit}), log", log=True),
    )
    return figure
