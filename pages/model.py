"""A model's geometry, what its cache costs, and the prompt sets to measure it with."""

import streamlit as st

from kvtuner_core import figures
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.tasks import ModelReport
from kvtuner_core.services import models, results
from pages.components import address, charts, failures, frame, jobs, prompt_files, requests, schemes
from pages.components.wording import moment, plain, size
from pages.components.workspace import workspace

PAGE = "model"


@failures.action
def load(spec: ModelSpec) -> None:
    """Queue the loading of the model."""
    address.put("job", models.start_inspection(workspace(), spec))


def known_info(spec: ModelSpec, report: ModelReport | None) -> ModelInfo:
    """The model's geometry, without touching the model where the shipped study tells it."""
    if report is not None:
        return report.info
    study = results.demo_study()
    if study is not None and study.sweep.model.reference == spec.reference:
        return study.sweep.model
    with st.spinner("Reading the model's configuration"):
        return models.describe(workspace(), spec.reference)


def geometry(info: ModelInfo) -> None:
    """What the cache is made of."""
    shapes = sorted({(layer.kv_heads, layer.key_dim, layer.value_dim) for layer in info.layers})
    heads = ", ".join(sorted({str(shape[0]) for shape in shapes}))
    dims = ", ".join(sorted({str(shape[1]) for shape in shapes}))
    sliding = sum(layer.sliding_window is not None for layer in info.layers)
    facts = (
        (
            "Layers with a cache",
            str(len(info.layers)),
            f"{sliding} with a sliding window" if sliding else "no sliding window",
        ),
        ("KV heads", heads, f"{info.query_heads} query heads"),
        (
            "Values per head",
            dims,
            "key and value alike" if all(s[1] == s[2] for s in shapes) else "keys; values differ",
        ),
        ("Longest context, tokens", f"{info.max_positions:,}", plain(info.architecture)),
    )
    for column, (label, value, note) in zip(st.columns(4), facts, strict=True):
        with column:
            charts.fact(label, value, note)
    with st.expander("Table of layers", icon=":material/table:"):
        charts.table(
            [
                {"Layer": i, "KV heads": g.kv_heads, "Values per key": g.key_dim, "Values per value": g.value_dim,
                 "Sliding window, tokens": g.sliding_window or "none"}
                for i, g in enumerate(info.layers)
            ],
            key="geometry",
        )  # fmt: skip


def memory(info: ModelInfo, report: ModelReport | None) -> None:
    """What a batch and a context cost at each bit width, against the device's free memory."""
    st.subheader("What the cache costs", anchor=False)
    form, picture = st.columns([2, 3], gap="large")
    with form:
        scheme = schemes.scheme()
        batch = address.whole("Batch, sequences", (1, 4096), name="batch", page=PAGE, value=8)
        context = address.whole("Context, tokens of each", (1, 1_048_576), name="context", page=PAGE, value=4096)
        if context > info.max_positions:
            st.warning(f"The model was made for up to {info.max_positions:,} tokens.")
    with picture:
        rows = models.memory_rows(info, scheme, batch=batch, context=context)
        free = report.free_bytes if report is not None else None
        shown = figures.memory_info(rows, free_bytes=free)
        charts.show(
            figures.memory_figure(shown, dark=charts.is_dark()),
            shown.rows(),
            key="memory",
            alt="Size of the cache in GiB at 16, 8, 4 and 2 bits",
        )


def device(spec: ModelSpec, report: ModelReport | None) -> None:
    """What the device has, or a button that finds out."""
    run = address.parameter("job")
    if run and jobs.follow(run):
        return
    if report is None:
        st.button("Load the model and measure free memory", icon=":material/memory:", on_click=load, args=(spec,))
    else:
        st.caption(
            plain(
                f"{report.provenance.device}, {report.provenance.dtype}: {size(report.free_bytes)} of "
                f"{size(report.total_bytes)} free when the model was loaded, {moment(report.provenance.created)}"
            )
        )


def main() -> None:
    """Draw the page."""
    st.title("Model", anchor=False)
    with failures.in_one_line():
        spec = requests.model_spec(wide=True)
        report = models.report(workspace(), spec)
        info = known_info(spec, report)
        st.subheader(plain(info.name), anchor=False)
        geometry(info)
        device(spec, report)
        memory(info, report)
    prompt_files.show()


frame.draw(main)
