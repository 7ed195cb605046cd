"""What this is, what the shipped study found, what runs now, and where to go next."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.study import SearchResult
from kvtuner_core.services import results
from pages.components import charts, frame, headlines, jobs, stored
from pages.components.wording import nats
from pages.components.workspace import workspace

STEPS = (
    ("pages/model.py", "Choose a model", "memory", "What its cache costs at 16, 8, 4 and 2 bits."),
    ("pages/search.py", "Search", "travel_explore", "Measure each layer, then find the best policies."),
    ("pages/tradeoffs.py", "Pick a policy", "scatter_plot", "Within your memory, and download it."),
    ("pages/compare.py", "Compare", "compare_arrows", "Full precision beside a policy, live."),
)


def head() -> None:
    """The project in one sentence."""
    st.title("How many bits should each layer's keys and values get?", anchor=False)
    st.markdown(
        "KVTuner measures a live language model, searches the bits of every layer's KV cache, shows what each "
        "choice costs in quality, and hands over a policy file that a program can load and run."
    )


def study(result: SearchResult) -> None:
    """The headline picture and numbers of the shipped study."""
    picture, words = st.columns([3, 2], gap="large")
    with picture:
        info = figures.pareto_info(result)
        charts.show(
            figures.pareto_figure(info, dark=charts.is_dark(), height=340),
            info.rows(),
            key="headline",
            alt="KL against effective bits of the searched policies and of the uniform ones",
        )
    with words:
        st.subheader(f"{result.sweep.model.name}, {result.sweep.spec.scheme.name} scheme", anchor=False)
        budgets(result)
        stored.origin(result)
        st.page_link(
            "pages/tradeoffs.py",
            label="Explore this study",
            icon=":material/arrow_forward:",
            query_params={"run": result.run},
        )


def budgets(result: SearchResult) -> None:
    """The best searched and the best uniform policy within each budget; the widest gap in words."""
    steps = headlines.steps(result)
    objective = result.spec.objective
    gains = [(step.less, step) for step in steps if step.less is not None and step.less > 0]
    if gains:
        less, step = max(gains, key=lambda gain: gain[0])
        st.markdown(
            f"The gain is widest at a budget of {step.bits:.0f} effective bits: {objective.label} is "
            f"**{100 * less:.0f}% lower** than with the best uniform policy that fits. In {objective.unit}, on prompts "
            "the search did not see:"
        )
    st.table(
        {
            "Budget": [f"{step.bits:.0f} bits" for step in steps],
            "Searched": [nats(step.searched.value(objective).mean) for step in steps],
            "Best uniform": [
                f"{nats(step.uniform.value(objective).mean)} ({step.uniform.policy.name})"
                if step.uniform
                else "none fits"
                for step in steps
            ],
        },
        border="horizontal",
        hide_index=True,
    )


def main() -> None:
    """Draw the page."""
    head()
    result = results.load_search(workspace(), results.DEMO_RUN) if results.demo_record() else None
    live = jobs.live_views()
    if live:
        st.subheader("At work now", anchor=False)
        for view in live:
            jobs.follow(view.record.id)
    if result is not None:
        study(result)
    else:
        stored.empty("No study yet", "Search the bits of the bundled model; it takes a few minutes on a CPU.")
    st.subheader("Next", anchor=False)
    for column, (page, label, icon, text) in zip(st.columns(len(STEPS)), STEPS, strict=True):
        with column, st.container(border=True, height="stretch"):
            st.page_link(page, label=f"**{label}**", icon=f":material/{icon}:")
            st.caption(text)


frame.draw(main)
