"""How far a search can be trusted: checks, additive prediction, and solvers side by side."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.services import trust
from pages.components import charts, policies
from pages.components.wording import count, plain
from pages.components.workspace import workspace

GOOD, LOOK = ":material/check_circle:", ":material/warning:"


def section(result: SearchResult) -> None:
    """One closed box; what it holds is computed when it is opened."""
    worries = sum(not check.good for check in trust.checks(result))
    label = "Can this be trusted?" + (f" {worries} to look at" if worries else "")
    box = st.expander(label, icon=LOOK if worries else GOOD, key="trust", bind="query-params")
    if not box.open:
        return
    with box:
        health, predicted, compared = st.tabs(["Checks", "Measured against predicted", "Solvers"], key="trust-tabs")
        with health:
            _checks(result)
        with predicted:
            _prediction(result)
        with compared:
            _solvers(result)


def _checks(result: SearchResult) -> None:
    for check in trust.checks(result):
        st.markdown(f"{GOOD if check.good else LOOK} **{check.name.capitalize()}.** {plain(check.text)}")


def _prediction(result: SearchResult) -> None:
    info = figures.prediction_info(result)
    st.caption(plain(info.verdict))
    charts.show(
        figures.prediction_figure(info, dark=charts.is_dark()),
        info.rows(),
        key="prediction",
        alt=f"Measured {info.objective.label} of each policy against the sum of the isolated KLs of its layers",
    )


def _solvers(result: SearchResult) -> None:
    found = trust.comparable(workspace(), result)
    info, objective = figures.solvers_info(found), result.spec.objective
    st.caption(
        f"{count(len(found), 'search')} of this model, these prompts, this scheme and these bounds. Hypervolume: share "
        f"of the plane below {trust.REFERENCE_BITS:g} bits and {objective.worst:g} {objective.unit} that the front "
        "dominates. Regret: what of it the refitted additive model says was not reached."
    )
    charts.table(info.rows(), key="solvers-beside")
    regrets = (trust.regret(result), trust.group_regret(result))
    st.caption(plain(f"Of this search: {'; '.join(item.text for item in regrets if item is not None)}."))
    if len(found) == 1:
        st.caption("Search again with another strategy, and its front stands beside this one.")
        return
    charts.show(
        figures.solvers_figure(info, dark=charts.is_dark()),
        info.front_rows(),
        key="solvers",
        alt=f"{objective.label} on evaluation prompts against effective bits, a line per strategy",
    )


def same_as(picked: Candidate, result: SearchResult) -> str:
    """The narrowest searched policy that cannot be told from the picked one, in one sentence, or empty."""
    narrower = [item for item in result.front if item.effective_bits < picked.effective_bits]
    same = trust.alike(picked, narrower, result.spec.objective)
    if not same:
        return ""
    more = f", nor from {count(len(same) - 1, 'policy')} between them" if len(same) > 1 else ""
    return f"On these prompts it is not distinguishable from {policies.name(same[0])}{more}."
