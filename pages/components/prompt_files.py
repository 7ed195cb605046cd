"""The prompt sets of the server, and a place to add one."""

import streamlit as st

from kvtuner_core.errors import InputError
from kvtuner_core.services import prompts
from pages.components import charts, failures
from pages.components.wording import count, plain
from pages.components.workspace import workspace

_REFUSED = "upload-refused"


@failures.action
def _keep() -> None:
    """Keep the uploaded prompt file; why it is refused is said beside it, for the top of the page is out of sight."""
    file = st.session_state.get("upload")
    st.session_state[_REFUSED] = ""
    if file is None:
        return
    try:
        info = prompts.add_upload(workspace(), file.name, file.getvalue())
    except InputError as error:
        st.session_state[_REFUSED] = str(error)
        return
    are = "is" if info.count == 1 else "are"
    st.toast(plain(f"{info.name}: {count(info.count, 'prompt')} {are} ready to use."))


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
    if st.session_state.get(_REFUSED):
        failures.show(st.session_state[_REFUSED])
