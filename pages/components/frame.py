"""The frame around every page: name, navigation, and the place where failures become one line.

Streamlit runs the files of a folder called ``pages`` by itself until a script has called
`st.navigation`. Somebody who opens a fresh server at a page's own address would get that page
without its frame, so a page that finds itself alone hands over to ``app.py``.
"""

from collections.abc import Callable
from contextvars import ContextVar

import streamlit as st
from streamlit.navigation.page import Page

from pages.components import failures

PAGES = (
    ("overview", "Overview"),
    ("model", "Model"),
    ("sensitivity", "Sensitivity"),
    ("search", "Search"),
    ("tradeoffs", "Trade-offs"),
    ("compare", "Compare"),
    ("runs", "Runs"),
)
"""File and title of each page, in the order of the work."""

_BARS = (
    '<g fill="#2f86e0"><rect x="1" y="4" width="5" height="20" rx="1.5"/>'
    '<rect x="8" y="10" width="5" height="14" rx="1.5"/><rect x="15" y="16" width="5" height="8" rx="1.5"/></g>'
)
ICON = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-3 0 28 28" width="28" height="28">{_BARS}</svg>'
"""Three bars that need fewer and fewer bits."""

LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 112 28" width="112" height="28">'
    f'{_BARS}<text x="27" y="21" font-family="sans-serif" font-size="19" font-weight="600" fill="#2f86e0">'
    "KVTuner</text></svg>"
)

_inside: ContextVar[bool] = ContextVar("inside the frame", default=False)


def show() -> None:
    """Draw the frame and the page that the address names."""
    st.set_page_config(page_title="KVTuner", page_icon=ICON, layout="wide")
    st.logo(LOGO, size="large")
    page = _navigation()
    token = _inside.set(True)
    try:
        with failures.in_one_line():
            page.run()
    finally:
        _inside.reset(token)


def draw(page: Callable[[], None]) -> None:
    """Draw a page inside the frame; alone, start again with the frame around it."""
    if not _inside.get():
        _navigation()
        st.rerun()
    page()


def _navigation() -> Page:
    # A page with an icon of its own makes the browser fetch it from a font service, so none has one.
    pages = [st.Page(f"pages/{name}.py", title=title, default=name == "overview") for name, title in PAGES]
    return st.navigation(pages, position="top")
