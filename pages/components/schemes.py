"""The form of a quantisation scheme: widgets in, a checked value out."""

import streamlit as st

from kvtuner_core.domain.scheme import QuantScheme, Rotation

HEAD = "head_dim"
"""Choice of group size: one group per token and head."""

SCHEMES = {"per-token": "per-token", "kivi": "KIVI"}

ROTATIONS = {
    Rotation.NONE.value: "none",
    Rotation.KEYS.value: "keys",
    Rotation.KEYS_AND_VALUES.value: "keys and values",
}

WIDE, NARROW = 150, 130
"""Widths of the form's fields in pixels, labels and their help included."""


def scheme() -> QuantScheme:
    """Ask for the quantisation scheme.

    Raises:
        SchemeError: If the options do not go together.
    """
    name = st.segmented_control(
        "Scheme",
        list(SCHEMES),
        format_func=lambda value: SCHEMES.get(value, value),
        default="per-token",
        required=True,
        key="scheme",
        bind="query-params",
        help="per-token: keys and values share a scale within each token. KIVI: keys share one per channel. "
        "Symmetric: without offsets.",
    )
    kivi = name == "kivi"
    sizes = ["32", "16", "64", "128"] if kivi else [HEAD, "16", "32", "64", "128"]
    # Side by side where there is room, below each other where there is not.
    with st.container(horizontal=True):
        group = st.selectbox(
            "Group size, values",
            sizes,
            key=f"group_{name}",
            bind="query-params",
            help="Values that share a scale. Smaller is more exact and costs more bits.",
            width=WIDE,
        )
        rotation = _rotation()
    with st.container(horizontal=True):
        window, share, sinks = _windows(kivi=kivi)
    symmetric = st.toggle("Symmetric", key="symmetric", bind="query-params")
    if kivi:
        return QuantScheme.kivi(
            group_size=int(group or 32),
            residual_length=window,
            symmetric=symmetric,
            sink_length=sinks,
            residual_share=share,
            rotation=rotation,
        )
    return QuantScheme.per_token(
        group_size=None if group == HEAD else int(group or 32),
        residual_length=window,
        symmetric=symmetric,
        sink_length=sinks,
        residual_share=share,
        rotation=rotation,
    )


def _rotation() -> Rotation:
    chosen = st.selectbox(
        "Rotation",
        list(ROTATIONS),
        format_func=lambda value: ROTATIONS.get(value, value),
        key="rotation",
        bind="query-params",
        help="Turned by a Hadamard transform along head_dim before they are quantised, which spreads outlier "
        "channels. The fused kernels do not read rotated codes.",
        width=WIDE,
    )
    return Rotation(chosen or Rotation.NONE)


def _windows(*, kivi: bool) -> tuple[int, float, int]:
    """Newest tokens, newest share of the context, and first tokens in full precision."""
    newest = st.number_input(
        "Window, tokens",
        0,
        4096,
        32 if kivi else 0,
        step=16,
        key="residual_kivi" if kivi else "residual_per-token",
        bind="query-params",
        help="Newest tokens kept in full precision.",
        width=NARROW,
    )
    share = st.number_input(
        "Window, %",
        0,
        50,
        0,
        step=5,
        key="residual_share",
        bind="query-params",
        help="Newest share of the context kept in full precision, where it is more than the tokens beside it.",
        width=NARROW,
    )
    first = st.number_input(
        "Sinks, tokens",
        0,
        256,
        0,
        key="sinks",
        bind="query-params",
        help="First tokens kept in full precision.",
        width=NARROW,
    )
    return int(newest), int(share) / 100, int(first)
