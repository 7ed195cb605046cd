"""How torch's threads wait for each other on a CPU."""

import os

_WAIT = "OMP_WAIT_POLICY"


def let_idle_threads_sleep() -> None:
    """Let torch's threads sleep between two operations; to be called before torch is imported.

    By default they spin. Where anything else wants the cores too, every operation then waits for a
    thread that another process has displaced: on two busy cores a pass of small matrix products
    took eight to twelve times as long. A value of ``OMP_WAIT_POLICY`` that is set already stays.
    """
    os.environ.setdefault(_WAIT, "PASSIVE")
