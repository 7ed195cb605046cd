"""A sweep's scores of its layers, side by side."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.study import SweepResult
from pages.components import charts
from pages.components.wording import count, plain

MISSING = (
    "This sweep has no scores by gradients and weights. Start the same sweep again with the scores on: "
    "what it measured is kept, and the scores take seconds."
)


def show(result: SweepResult) -> None:
    """Scores over the layers, how alike they rank, and what each would pick; or how to get them."""
    st.subheader("Scores of layers, side by side", anchor="scores")
    if result.scores is None:
        st.info(MISSING)
        return
    info = figures.scores_info(result)
    left, right = st.columns([3, 2], gap="large")
    with left:
        charts.show(
            figures.scores_figure(info, dark=charts.is_dark()),
            info.rows(),
            key="scores",
            alt="Each layer's share of every score, a line a score",
        )
    with right:
        charts.show(
            figures.correlations_figure(info, dark=charts.is_dark()),
            info.correlation_rows(),
            key="score-correlations",
            alt="Rank correlation over the layers of every two scores",
        )
    if result.scores.weights.absent:
        st.caption(plain(result.scores.weights.absent))
    _picks(info, result)


def _picks(info: figures.ScoresInfo, result: SweepResult) -> None:
    scores = result.scores
    picks = scores.picks if scores else ()
    title = "**What each score would pick** within so many effective bits" if picks else "**What each score costs**"
    st.markdown(title)
    charts.table(info.pick_rows(), key="score-picks")
    probes = scores.errors.probes if scores else 0
    note = (
        f"Fisher error from {count(probes, 'probe')} a prompt; "
        "rank correlations are means of all pairs; costs leave out the shared reading of the prompts."
    )
    if not picks:
        note += " A sweep with Compare scores on evaluates the policy that each score would pick at equal bits."
    st.caption(plain(note))
