"""The dashboard's frame: title, navigation, and the place where failures become one line."""

import streamlit as st

from pages.components import failures

PAGES = (
    ("overview", "Overview", "home"),
    ("model", "Model", "memory"),
    ("sensitivity", "Sensitivity", "grid_on"),
    ("search", "Search", "travel_explore"),
    ("tradeoffs", "Trade-offs", "scatter_plot"),
    ("compare", "Compare", "compare_arrows"),
    ("runs", "Runs", "history"),
)
"""File, title and icon of each page, in the order of the work."""

MARK = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 124 28" width="124" height="28">
<g fill="#2f86e0"><rect x="1" y="4" width="5" height="20" rx="1.5"/><rect x="8" y="10" width="5" height="14" rx="1.5"/>
<rect x="15" y="16" width="5" height="8" rx="1.5"/></g>
<text x="28" y="21" font-family="sans-serif" font-size="19" font-weight="600" fill="#2f86e0">KVTuner</text></svg>"""
"""Name and sign: three bars that need fewer and fewer bits."""

ICON = MARK.split("<text", maxsplit=1)[0].replace('0 0 124 28" width="124"', '-3 0 28 28" width="28"') + "</svg>"


def main() -> None:
    """Draw the frame and the page the address names."""
    st.set_page_config(page_title="KVTuner", page_icon=ICON, layout="wide")
    st.logo(MARK, size="large")
    pages = [
        st.Page(f"pages/{name}.py", title=title, icon=f":material/{icon}:", default=name == "overview")
        for name, title, icon in PAGES
    ]
    page = st.navigation(pages, position="top")
    with failures.in_one_line():
        page.run()


# Workers started by spawn import this file again under another name.
if __name__ == "__main__":
    main()
