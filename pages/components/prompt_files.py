"""The prompt sets of the server, and a place to add one."""

import streamlit as st

from kvtuner_core.services import prompts
from pages.components import charts, failures
from pages.components.wording import plain
from pages.components.workspace import workspace


@failures.action
def _keep() -> None:
    """Keep the uploaded prompt file."""
    file = st.session_state.get("upload")
    if file is not None:
        info = prompts.add_upload(workspace(), file.name, file.getvalue())
        st.toast(plain(f"{info.name}: {info.count} prompts are ready to use."))


def show() -> None:
    """The prompt sets, and an upload."""
    st.subheader("Prompt sets", anchor=False)
    charts.table(
        [
            {"Name": i.name, "Role": str(i.role), "Prompts": i.count, "Characters": i.characters, "Origin": i.origin,
             "Licence": i.licence}
            for i in prompts.list_prompt_sets(workspace())
        ],
        key="prompts",
    )  # fmt: skip
    st.file_uploader(
        "Add a prompt set: .jsonl with text, or prompt and completion, a line; or .txt with --- between texts",
        type=["jsonl", "txt"],
        key="upload",
        max_upload_size=8,
        on_change=_keep,
    )
