"""A whole policy in one line."""

from itertools import groupby

from kvtuner_core.domain.policy import KVPolicy

_LINE = 64


def summary(policy: KVPolicy) -> str:
    """Runs of layers with the same bits, such as ``L0 K8V4 · L1-4 K4V4``."""
    parts = []
    for name, run in groupby(enumerate(policy.layers), key=lambda item: item[1].name):
        indices = [index for index, _ in run]
        where = f"L{indices[0]}" if len(indices) == 1 else f"L{indices[0]}-{indices[-1]}"
        parts.append(f"{where} {name}")
    return " · ".join(parts)


def wrapped(text: str) -> str:
    """``text`` of runs with line breaks for a hover label."""
    lines = [""]
    for part in text.split(" · "):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += f" · {part}" if lines[-1] else part
    return "<br>".join(lines)
