"""Text that calibrates or evaluates."""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

MIN_PREFIX = 8
"""Fewest tokens of a prefix: below, a cache has nothing to lose."""

MIN_SUFFIX = 2
"""Fewest scored tokens: the last one may have no next token, whose likelihood is measured, too."""


class PromptRole(StrEnum):
    """What a prompt set may be used for; shipped sets of different roles share no material."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    USER = "user"


class PromptKind(StrEnum):
    """What a text is, as far as it matters to a cache."""

    PROSE = "prose"
    MATHS = "maths"
    CHAT = "chat"
    RETRIEVAL = "retrieval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One text, or a prompt with the completion to score.

    Attributes:
        text: The text, or the prompt in front of ``completion``.
        completion: What is scored, or empty where the end of ``text`` is.
    """

    text: str
    completion: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Named calibration or evaluation text.

    Attributes:
        name: Shipped name such as ``calibration``, or the file's name.
        role: What it may be used for.
        prompts: The texts, in order.
    """

    name: str
    role: PromptRole
    prompts: tuple[Prompt, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the texts in order; the name is left out."""
        body = json.dumps([[prompt.text, prompt.completion] for prompt in self.prompts], ensure_ascii=True)
        return hashlib.sha256(body.encode()).hexdigest()

    def first(self, limit: int | None) -> "PromptSet":
        """The first ``limit`` prompts, or all of them for ``None``."""
        return self if limit is None else PromptSet(name=self.name, role=self.role, prompts=self.prompts[:limit])
