"""Where two generations differ, token by token, in words and as marked text."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MARK = "background:rgba(237,137,20,.22);color:inherit;border-bottom:2px solid #e07b00;border-radius:2px"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a generation differs from the one it is held against.

    Attributes:
        marked: For each of its tokens, whether the other generation has no such token at that place.
        first: Index of the first token that differs, or ``None`` where all are the same.
    """

    marked: tuple[bool, ...]
    first: int | None

    @property
    def words(self) -> str:
        """The difference in one sentence."""
        if self.first is None:
            return "Same tokens as full precision"
        changed = sum(self.marked)
        return f"First differs at token {self.first + 1}; {changed} of {len(self.marked)} tokens marked"


def compare(tokens: Sequence[str], reference: Sequence[str], *, finished: bool = True) -> Difference:
    """Align the texts of two generations' tokens.

    Args:
        tokens: The generation to mark.
        reference: The generation it is held against.
        finished: Whether both are complete; otherwise a missing end is no difference.
    """
    matched = [False] * len(tokens)
    for block in SequenceMatcher(a=reference, b=tokens, autojunk=False).get_matching_blocks():
        matched[block.b : block.b + block.size] = [True] * block.size
    shared = min(len(tokens), len(reference))
    first = next((index for index in range(shared) if tokens[index] != reference[index]), None)
    if first is None and finished and len(tokens) != len(reference):
        first = shared
    if first is None:
        return Difference(marked=(False,) * len(tokens), first=None)
    return Difference(marked=tuple(not same and index >= first for index, same in enumerate(matched)), first=first)


def as_html(tokens: Sequence[str], marked: Sequence[bool] = ()) -> str:
    """The text with line breaks kept and runs of marked tokens in ``mark`` elements; all else escaped."""
    flags = list(marked) or [False] * len(tokens)
    parts: list[str] = []
    start = 0
    for index in range(1, len(tokens) + 1):
        if index == len(tokens) or flags[index] != flags[start]:
            text = html.escape("".join(tokens[start:index]))
            parts.append(f'<mark style="{MARK}">{text}</mark>' if flags[start] else text)
            start = index
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{"".join(parts)}</div>'
