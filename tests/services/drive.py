"""Runs a generator of progress to its end."""


def drive(steps):
    """The progresses and the result."""
    seen = []
    try:
        while True:
            seen.append(next(steps))
    except StopIteration as finished:
        return seen, finished.value
