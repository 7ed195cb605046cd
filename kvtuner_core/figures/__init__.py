"""Charts: a value becomes plain numbers first (``*_info``) and a Plotly figure second (``*_figure``)."""

from kvtuner_core.figures.effect import EffectInfo, correlation_info, effect_figure, effect_info
from kvtuner_core.figures.heatmap import HeatmapInfo, heatmap_figure, heatmap_info
from kvtuner_core.figures.layer import LayerInfo, layer_figure, layer_info
from kvtuner_core.figures.lines import LinesInfo, lines_figure, lines_info
from kvtuner_core.figures.memory import CacheCost, MemoryInfo, memory_figure, memory_info
from kvtuner_core.figures.pareto import ParetoInfo, ParetoPoint, pareto_figure, pareto_info
from kvtuner_core.figures.policy_text import summary
from kvtuner_core.figures.prediction import PredictionInfo, prediction_figure, prediction_info
from kvtuner_core.figures.progress import ProgressInfo, hypervolume_figure, progress_figure, progress_info
from kvtuner_core.figures.scores import ScoresInfo, correlations_figure, scores_figure, scores_info
from kvtuner_core.figures.solvers import SolversInfo, solvers_figure, solvers_info
from kvtuner_core.figures.speed import SpeedInfo, speed_figure, speed_info, speed_share_figure
from kvtuner_core.figures.strip import StripInfo, strip_figure, strip_info
from kvtuner_core.figures.style import CHART_CONFIG, INK

__all__ = [
    "CHART_CONFIG",
    "INK",
    "CacheCost",
    "EffectInfo",
    "HeatmapInfo",
    "LayerInfo",
    "LinesInfo",
    "MemoryInfo",
    "ParetoInfo",
    "ParetoPoint",
    "PredictionInfo",
    "ProgressInfo",
    "ScoresInfo",
    "SolversInfo",
    "SpeedInfo",
    "StripInfo",
    "correlation_info",
    "correlations_figure",
    "effect_figure",
    "effect_info",
    "heatmap_figure",
    "heatmap_info",
    "hypervolume_figure",
    "layer_figure",
    "layer_info",
    "lines_figure",
    "lines_info",
    "memory_figure",
    "memory_info",
    "pareto_figure",
    "pareto_info",
    "prediction_figure",
    "prediction_info",
    "progress_figure",
    "progress_info",
    "scores_figure",
    "scores_info",
    "solvers_figure",
    "solvers_info",
    "speed_figure",
    "speed_info",
    "speed_share_figure",
    "strip_figure",
    "strip_info",
    "summary",
]
