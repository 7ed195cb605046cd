"""The one place where failures become a line on the page."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import streamlit as st

from kvtuner_core.errors import KVTunerError
from pages.components.wording import plain

P = ParamSpec("P")

UNEXPECTED = (
    "Something unexpected went wrong here. What is stored is safe; the details are in the server's log. "
    "Reload the page, and report it with those details if it comes back."
)
_NOTICE = "failure-notice"
_log = logging.getLogger("kvtuner.pages")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Show what fails inside as one line, without a traceback; unexpected failures are logged."""
    show_notice()
    try:
        yield
    except Exception as error:  # noqa: BLE001
        show(describe(error))


def describe(error: Exception) -> str:
    """The line for an error: its own where it was raised on purpose, else a calm general one."""
    if isinstance(error, KVTunerError):
        return str(error)
    _log.error("A page failed", exc_info=error)
    return UNEXPECTED


def show(message: str) -> None:
    """Show a failure; markup in ``message`` is shown as it is."""
    st.error(plain(message), icon=":material/error:")


def action(callback: Callable[P, None]) -> Callable[P, None]:
    """Make a widget callback whose failure is shown above the page that follows it."""

    @wraps(callback)
    def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            st.session_state[_NOTICE] = describe(error)

    return safe


def show_notice() -> None:
    """Show, once, what a callback before this run failed with."""
    message = st.session_state.pop(_NOTICE, None)
    if message:
        show(message)
