"""Long work: queues, progress, cancelling, and what is left of it after the process died."""

from kvtuner_core.jobs.job import Body
from kvtuner_core.jobs.queue import JobQueue

__all__ = ["Body", "JobQueue"]
