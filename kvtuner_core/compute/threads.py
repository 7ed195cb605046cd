"""How torch's threads wait for each other on a CPU."""

import os

_WAIT, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def let_idle_threads_sleep() -> None:
    """Let torch's threads spin for some microseconds and then sleep; to be called before torch is imported.

    By default they spin for long. Where anything else wants the cores too, every operation then waits
    for a thread that another process has displaced. Threads that sleep at once (``PASSIVE``) lose a fifth
    of the time on a quiet machine, for waking them takes longer than what they wait for. Whatever
    ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says already stays.
    """
    if _WAIT not in os.environ:
        os.environ.setdefault(_SPINS, "1000")
