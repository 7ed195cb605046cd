"""How the chosen policy does on kinds of text that it was not tuned on: a small table, measured when asked for."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from kvtuner_core.domain.kinds import KindRow, KindsResult, KindsSpec
from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.runs import RunRecord
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.services import kinds, trust
from pages.components import charts, failures, jobs, policies
from pages.components.trust import GOOD, LOOK
from pages.components.wording import moment, plain
from pages.components.workspace import workspace


def section(result: SearchResult, picked: Candidate) -> None:
    """One closed box; what it holds is read when it is opened."""
    box = st.expander("Prose, maths, chat and retrieval", icon=":material/category:", key="kinds", bind="query-params")
    if not box.open:
        return
    spec = kinds.kinds_spec(result, picked.policy)
    with box:
        record = kinds.kinds_run(workspace(), spec)
        found = kinds.load_kinds(workspace(), record.id) if record else None
        if found is not None:
            _show(found, picked)
        elif record is None:
            _offer(spec, picked)
        elif not jobs.follow(record.id):
            jobs.show_stopped(record)


def popover(record: RunRecord) -> None:
    """A finished run's table behind a button, where the policy of the run is not at hand."""
    with st.popover("Show", icon=":material/table:"):
        found = kinds.load_kinds(workspace(), record.id)
        if found is not None:
            charts.table([row(one) for one in found.rows], key=f"kinds-{record.id}")


def _offer(spec: KindsSpec, picked: Candidate) -> None:
    """Nothing is measured yet: what it would tell, and the button that starts it."""
    st.markdown(
        plain(
            f"{policies.name(picked)} was tuned on the search's calibration prompts. Measure it on each kind of text, "
            f"and ask {spec.items} questions from its packed cache: recall of a planted code, and multiple choice."
        )
    )
    st.button(
        "Measure this policy",
        key="kinds-start",
        icon=":material/play_arrow:",
        help="Some minutes on a CPU. It can be cancelled and goes on where it stopped.",
        on_click=_start,
        args=(spec,),
    )


@failures.action
def _start(spec: KindsSpec) -> None:
    kinds.start_kinds(workspace(), spec)


def _show(found: KindsResult, picked: Candidate) -> None:
    charts.table([row(one) for one in found.rows], key="kinds-table")
    for check in trust.kind_checks(found, picked.evaluation):
        st.markdown(f"{GOOD if check.good else LOOK} **{check.name.capitalize()}.** {plain(check.text)}")
    source = found.provenance
    st.caption(plain(f"95% intervals. Run {found.run}, {source.device}, {source.dtype}, {moment(source.created)}"))


def row(one: KindRow) -> Mapping[str, Any]:
    """A kind as a row: the policy by teacher forcing, and its right answers beside those of full precision."""
    score = one.score
    own = full = change = ""
    if one.task is not None and one.full is not None and one.difference is not None:
        own, full = _share(one.task.accuracy), _share(one.full.accuracy)
        change = _points(one.difference.accuracy)
    return {
        "Kind": str(one.kind).capitalize(),
        "KL (nats/token)": score.kl.mean,
        "95% interval": f"{score.kl.low:.3g} to {score.kl.high:.3g}",
        "Task": str(one.task.kind) if one.task else "none",
        "Right": own,
        "Right, full precision": full,
        "Difference (points)": change,
        "Same top token (%)": round(100 * score.top1_agreement, 1),
        "NLL change (nats/token)": round(score.nll_change, 4),
        "Tokens": score.tokens,
    }


def _share(value: Interval) -> str:
    return f"{100 * value.mean:.0f}% ({100 * value.low:.0f} to {100 * value.high:.0f})"


def _points(value: Interval) -> str:
    return f"{100 * value.mean:+.0f} ({100 * value.low:+.0f} to {100 * value.high:+.0f})"
