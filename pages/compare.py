"""A prompt answered in full precision and with one or two policies, side by side."""

import streamlit as st

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import BASELINE_PAIRS
from kvtuner_core.domain.runs import RunKind
from kvtuner_core.domain.tasks import GenerateTask
from kvtuner_core.errors import InputError
from kvtuner_core.services import generating, models
from pages.components import (
    address,
    failures,
    frame,
    generations,
    headlines,
    policies,
    requests,
    schemes,
    speed,
    stored,
)
from pages.components.workspace import workspace

PAGE = "compare"
MOST = 2
EXAMPLE = "List three facts about the Moon, then explain in two sentences why it always shows us the same side."
SOURCES = {"run": "Policies of a run", "uniform": "Uniform policies of any model"}
Choice = tuple[ModelSpec, dict[str, KVPolicy]]


@failures.action
def start(tasks: list[GenerateTask]) -> None:
    """Queue one generation a task; their runs are in the address."""
    address.put("job", [generating.start_generation(workspace(), task) for task in tasks])


def from_run() -> Choice | None:
    """A model and policies of a finished search."""
    left, right = st.columns(2, gap="large")
    with left:
        record = stored.choose_run(PAGE, RunKind.SEARCH, finished=True)
    result = stored.search_of(record) if record is not None else None
    if result is None:
        return None
    offered = policies.offered(result)
    labels = {key: text for key, text in policies.labels(result).items() if not offered[key].policy.is_full}
    best = headlines.within(result, headlines.middle(result)) if result.front else None
    middle = policies.identity(best) if best is not None else next(iter(labels))
    with right:
        chosen = address.choose_many(
            "Policies, one or two", labels, name="policy", page=PAGE, default=(middle,), most=MOST
        )
    return result.spec.sweep.model, {key: offered[key].policy for key in chosen}


def uniform() -> Choice:
    """Any model, with uniform policies."""
    left, right = st.columns(2, gap="large")
    with left:
        spec = requests.model_spec()
    with right:
        scheme = schemes.scheme()
    pairs = {pair.name: f"uniform {pair.name}" for pair in BASELINE_PAIRS}
    chosen = address.choose_many("Policies, one or two", pairs, name="pair", page=PAGE, default=("K4V4",), most=MOST)
    layers = len(models.describe(workspace(), spec.reference).layers)
    return spec, {name: KVPolicy.uniform(name, layers=layers, scheme=scheme) for name in chosen}


def tasks_for(choice: Choice) -> list[GenerateTask]:
    """Ask for the prompt; full precision first, then each policy.

    Raises:
        InputError: If the prompt is empty.
    """
    spec, chosen = choice
    left, right = st.columns([3, 2], gap="large")
    prompt = left.text_area("Prompt", EXAMPLE, height=122, max_chars=20_000, key="prompt", bind="query-params")
    first, second = right.columns(2)
    tokens = first.number_input("New tokens, at most", 1, 4096, 96, step=16, key="tokens", bind="query-params")
    temperature = second.number_input(
        "Temperature", 0.0, 2.0, 0.0, step=0.1, key="temperature", bind="query-params", help="0 is greedy."
    )
    chat = right.toggle("Chat template", True, key="chat", bind="query-params", help="Where the model has one.")
    if not prompt.strip():
        raise InputError("A prompt must not be empty. Write a question or the beginning of a text.")
    return [
        GenerateTask(
            model=spec,
            policy=policy,
            prompt=prompt,
            max_new_tokens=int(tokens),
            chat=chat,
            temperature=float(temperature),
        )
        for policy in (None, *chosen.values())
    ]


def form(source: str) -> dict[str, KVPolicy] | None:
    """Model, policies, prompt and the button; the policies that are chosen, or ``None`` if there are none to choose."""
    chosen: dict[str, KVPolicy] = {}
    with failures.in_one_line():
        choice = uniform() if source == "uniform" else from_run()
        if choice is None:
            stored.empty("No finished search yet", "Choose uniform policies above, or search for better ones.")
            return None
        chosen = choice[1]
        tasks = tasks_for(choice)
        st.button(
            "Generate",
            type="primary",
            icon=":material/play_arrow:",
            on_click=start,
            args=(tasks,),
            disabled=len(tasks) < 2,
            help="Choose at least one policy." if len(tasks) < 2 else None,
        )
    return chosen


def main() -> None:
    """Draw the page."""
    words, choice = st.columns([1, 2], vertical_alignment="center")
    words.title("Compare", anchor=False)
    with choice:
        source = address.switch("Policies", SOURCES, name="source", page=PAGE, visible=False)
    chosen = form(source)
    runs = st.query_params.get_all("job")[: MOST + 1]
    if runs:
        generations.show(runs)
    elif chosen is not None:
        st.info("Generate to see full precision and the policies side by side; tokens that differ are marked.")
    with failures.in_one_line():
        speed.show(chosen or {}, page=PAGE)


frame.draw(main)
