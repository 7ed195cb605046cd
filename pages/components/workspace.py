"""The one workspace of the server: store, workers and queue, shared by all sessions."""

import ipaddress

import streamlit as st

from kvtuner_core.services.workspace import Settings, Workspace


@st.cache_resource(max_entries=1, show_spinner=False, on_release=Workspace.close)
def workspace() -> Workspace:
    """Open the workspace on first use; model work runs on workers apart from this process.

    Raises:
        InputError: If an environment variable is not usable.
        StoreError: If the store is locked, newer or damaged.
    """
    return Workspace.open(Settings.from_environment(loopback=is_loopback()), inline=False)


def is_loopback(address: str | None = None) -> bool:
    """Whether only this machine reaches the server at ``address``, by default the configured one."""
    bound = st.get_option("server.address") if address is None else address
    if bound == "localhost":
        return True
    try:
        return ipaddress.ip_address(bound or "0.0.0.0").is_loopback  # noqa: S104
    except ValueError:
        return False
