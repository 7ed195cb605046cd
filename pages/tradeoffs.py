"""Quality against memory: the front, the best policy within a budget, and its file."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.runs import RunKind
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.services.picking import Budget, bits_within, candidate_gib, pick
from pages.components import address, charts, failures, frame, headlines, jobs, kinds, policies, stored, trust
from pages.components.wording import plain

PAGE = "tradeoffs"
CLICKED = "front"
MOST = 4
BESIDE = "Beside it: choose here, or click points of the front"
SEEN = {"evaluation": "Evaluation prompts", "calibration": "Calibration prompts"}
UNITS = {"bits": "Bits", "gib": "GiB"}


@failures.action
def clicked() -> None:
    """Put the clicked policy beside the others; a second click takes it away."""
    policy = charts.selected(CLICKED)
    chosen = address.held("policy", page=PAGE)
    if policy in chosen:
        chosen = tuple(item for item in chosen if item != policy)
    elif policy:
        chosen = (*chosen, policy)[-MOST:]
    address.hold("policy", chosen, page=PAGE)


def budget(result: SearchResult) -> Budget:
    """Ask for the budget in bits, or in GiB at a batch and context."""
    with st.container(horizontal=True):
        kind = address.switch("Budget in", UNITS, name="unit", page=PAGE)
        batch = address.whole("Batch", (1, 65_536), name="batch", page=PAGE, value=1, width=110)
        context = address.whole("Tokens", (1, 16_777_216), name="context", page=PAGE, value=4096, width=130)
    bits = [item.effective_bits for item in result.front]
    if kind == "bits":
        bounds = (round(min(bits) + 0.005, 2), round(max(bits) + 0.005, 2), 0.01)
        middle = headlines.middle(result)
        most = address.slide("Most effective bits", bounds, name="bits", page=PAGE, value=middle, unit="%.2f")
        return Budget(max_bits=most, batch=batch, context=context)
    sizes = [candidate_gib(result, item, batch=batch, context=context) for item in result.front]
    low, high = min(sizes), max(sizes)
    step = (high - low) / 200 or low / 100
    size = address.slide(
        "Most cache, GiB", (low, high + step, step), name="gib", page=PAGE, value=(low + high) / 2, unit="%.4g"
    )
    return Budget(max_gib=size, batch=batch, context=context)


def front(result: SearchResult, picked: Candidate, asked: Budget, others: tuple[str, ...]) -> None:
    """The front with baselines and intervals; a click puts a policy beside the picked one."""
    seen = address.switch("Measured on", SEEN, name="seen", page=PAGE, visible=False)
    info = figures.pareto_info(result, seen=seen)
    figure = figures.pareto_figure(info, dark=charts.is_dark(), picked=policies.identity(picked), height=400)
    limit = bits_within(result, asked)
    if limit is not None:
        charts.mark_limit(figure, limit, " over the budget")
    rings = [
        (point.effective_bits, max(info.floor, point.value(seen).mean)) for point in info.points if point.id in others
    ]
    charts.mark_points(figure, rings, "beside it")
    charts.show(
        figure,
        info.rows(),
        key=CLICKED,
        alt=f"{info.objective.label} against effective bits: searched policies, their front, uniform policies",
        on_click=clicked,
    )


def beside(result: SearchResult, shown: list[Candidate], asked: Budget) -> None:
    """Some policies as strips of bits and as a table."""
    strip = figures.strip_info([(policies.name(item), item.policy) for item in shown])
    charts.show(
        figures.strip_figure(strip, dark=charts.is_dark()),
        strip.rows(),
        key="strip",
        alt="Key and value bits of every layer of the chosen policies",
    )
    charts.table(policies.rows(shown, result, batch=asked.batch, context=asked.context), key="beside-table")


def show(result: SearchResult) -> None:
    """The trade-off of one search."""
    left, right = st.columns([3, 2], gap="large")
    lower = st.container()
    with right:
        asked = budget(result)
        picked = pick(result, asked)
        st.subheader(f"Best within the budget: {policies.name(picked)}", anchor=False)
        policies.headline(picked, result, batch=asked.batch, context=asked.context)
        words = (policies.against_uniform(picked, result, asked), trust.same_as(picked, result))
        st.markdown(plain(" ".join(words)))
        policies.downloads(result, picked)
    with lower:
        labels = policies.labels(result)
        others = address.choose_many(BESIDE, labels, name="policy", page=PAGE, default=("K4V4",), most=MOST)
    with left:
        front(result, picked, asked, others)
    with lower:
        offered = policies.offered(result)
        beside(result, [picked, *(offered[key] for key in others if offered[key] is not picked)], asked)
        kinds.section(result, picked)
        trust.section(result)
        with st.expander("Use the file in a program", icon=":material/code:"):
            st.code(policies.SNIPPET, language="python")
        stored.origin(result)


def main() -> None:
    """Draw the page."""
    record = stored.headed("Trade-offs", PAGE, RunKind.SEARCH)
    if record is None:
        stored.empty("No search yet", "A search finds the policies that lose least at every size.")
        return
    result = stored.search_of(record)
    if result is None:
        if not jobs.follow(record.id):
            jobs.show_stopped(record)
    elif not result.front:
        st.info("This search has no policy within its bound on bits. Search again with a higher bound.")
    else:
        show(result)


frame.draw(main)
