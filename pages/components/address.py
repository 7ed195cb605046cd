"""What a person chose is in the page's address, so that a reload or a link shows the same."""

import math
import zlib
from collections.abc import Mapping, Sequence

import streamlit as st

from pages.components.wording import plain

NOTHING = "none"
"""What the address says where a list was emptied."""


def parameter(name: str, *, largest: int = 500) -> str:
    """A parameter of the address, empty where it is missing or unreasonably long."""
    value = st.query_params.get(name, "")
    return value if len(value) <= largest else ""


def choose(
    label: str, options: Mapping[str, str], *, name: str, page: str, default: str = "", visible: bool = True
) -> str:
    """Offer a list whose choice is the address parameter ``name``.

    Args:
        label: The widget's label.
        options: Readable text by value; not empty.
        name: Parameter of the address.
        page: Page that asks, so that two pages' widgets stay apart.
        default: Value where the address names none; the first one if empty or unknown.
        visible: Whether the label is shown; it is always there for screen readers.

    Returns:
        The chosen value; a value in the address that is not offered is named and ignored.
    """
    # The list keeps showing the text it was opened with, so other texts make another list.
    key = f"{page}-{name}-{zlib.crc32(repr(options).encode()):x}"
    wanted = parameter(name)
    if wanted and wanted not in options:
        st.warning(f"{plain(label)} '{plain(wanted)}' from the address is not there; showing another one.")
    fallback = default if default in options else next(iter(options))
    _hold(key, wanted if wanted in options else fallback)
    chosen = st.selectbox(
        label,
        list(options),
        format_func=lambda value: options.get(value, value),
        key=key,
        on_change=_keep,
        args=(name, key),
        label_visibility="visible" if visible else "collapsed",
    )
    st.query_params[name] = chosen
    st.session_state[f"{page}-{name}-held"] = (chosen,)
    return str(chosen)


def switch(label: str, options: Mapping[str, str], *, name: str, page: str, visible: bool = True) -> str:
    """Offer a few values side by side, the first by default; the choice is the address parameter ``name``."""
    key = f"{page}-{name}"
    wanted = parameter(name)
    _hold(key, wanted if wanted in options else next(iter(options)))
    chosen = st.segmented_control(
        label,
        list(options),
        format_func=lambda value: options.get(value, value),
        key=key,
        required=True,
        label_visibility="visible" if visible else "collapsed",
        on_change=_keep,
        args=(name, key),
    )
    return str(chosen or next(iter(options)))


def choose_many(
    label: str, options: Mapping[str, str], *, name: str, page: str, default: Sequence[str], most: int
) -> tuple[str, ...]:
    """Offer a list of which up to ``most`` values are chosen; they are the address parameter ``name``."""
    key = f"{page}-{name}"
    named = st.query_params.get_all(name) if name in st.query_params else list(default)
    _hold(key, [value for value in dict.fromkeys(named) if value in options][:most])
    chosen = st.multiselect(
        label,
        list(options),
        format_func=lambda value: options.get(value, value),
        key=key,
        max_selections=most,
        on_change=_keep_many,
        args=(name, key),
    )
    st.session_state[f"{page}-{name}-held"] = tuple(chosen)
    return tuple(chosen)


def slide(
    label: str, bounds: tuple[float, float, float], *, name: str, page: str, value: float, unit: str = ""
) -> float:
    """Offer a slider whose value is the address parameter ``name``, held within its bounds.

    Args:
        label: The widget's label, with the unit.
        bounds: Smallest value, largest value, and step.
        name: Parameter of the address.
        page: Page that asks.
        value: Value where the address gives none or none that can be read.
        unit: Format of the shown value, such as ``%.2f``.
    """
    key = f"{page}-{name}"
    low, high, step = bounds
    _hold(key, min(high, max(low, _number(parameter(name), value))))
    return float(
        st.slider(label, low, high, step=step, format=unit or None, key=key, on_change=_keep, args=(name, key))
    )


def whole(label: str, bounds: tuple[int, int], *, name: str, page: str, value: int, width: int = 0) -> int:
    """Offer a whole number that is the address parameter ``name``, held within its bounds; ``width`` in pixels."""
    key = f"{page}-{name}"
    low, high = bounds
    _hold(key, int(min(high, max(low, _number(parameter(name), value)))))
    number = st.number_input(
        label, low, high, step=1, key=key, on_change=_keep, args=(name, key), width=width or "stretch"
    )
    return int(number)


def _number(text: str, fallback: float) -> float:
    try:
        number = float(text)
    except ValueError:
        return fallback
    return number if math.isfinite(number) else fallback


def held(name: str, *, page: str) -> tuple[str, ...]:
    """What was chosen last in a list, or by `hold`."""
    return tuple(st.session_state.get(f"{page}-{name}-held", ()))


def hold(name: str, values: Sequence[str], *, page: str) -> None:
    """Choose in a list for a person who clicked on a chart.

    When the chart is drawn again the browser says that nothing is clicked any more, and where the clicks came fast
    it sends the list's value of before along, which is no choice: hold what is `held` then.
    """
    st.session_state[f"{page}-{name}-held"] = tuple(values)
    put_many(name, values)


def put_many(name: str, values: Sequence[str]) -> None:
    """Write what is chosen in a list; that nothing is chosen is a choice, too."""
    put(name, list(values) or [NOTHING])


def put(name: str, value: str | Sequence[str]) -> None:
    """Write a parameter of the address; empty removes it."""
    if value:
        st.query_params[name] = value if isinstance(value, str) else list(value)
    elif name in st.query_params:
        del st.query_params[name]


def _hold(key: str, value: object) -> None:
    # A value that is set again, even to itself, would take back what a person is just changing.
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def _keep_many(name: str, key: str) -> None:
    put_many(name, st.session_state.get(key) or ())


def _keep(name: str, key: str) -> None:
    value = st.session_state.get(key)
    if isinstance(value, float | int):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    put(name, value or "")
