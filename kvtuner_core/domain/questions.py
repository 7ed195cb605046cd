"""Questions with a right answer, and how a policy's cache answered them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvtuner_core.domain.metrics import Interval

QUESTION_VERSION = 1
"""Raised whenever asking or judging changes, so that old stored replies are not reused."""


class TaskKind(StrEnum):
    """How a question is asked and judged.

    ``RECALL``: the code of one name, planted among others in the prompt; right if the model
    generates it exactly. ``MULTIPLE_CHOICE``: right if the correct continuation has the highest
    log-likelihood per character of all (HellaSwag). ``EXACT_MATCH``: generated freely; right if the
    answer is what was generated, or for numbers the last number in it (GSM8K).
    """

    RECALL = "recall"
    MULTIPLE_CHOICE = "multiple-choice"
    EXACT_MATCH = "exact-match"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item of a task.

    Attributes:
        kind: How it is asked and judged.
        prompt: What is read first and quantised.
        answer: What is right: the text to generate, or the correct one of ``choices``.
        choices: All choices of a multiple-choice question, each a continuation of the prompt.
        solution: Continuation whose likelihood is measured; empty where it is ``answer``.
        max_new_tokens: Most tokens to generate; 0 stands for as many as ``answer`` has.
        stop: Text at which a generated answer ends; empty for none.
    """

    kind: TaskKind
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    solution: str = ""
    max_new_tokens: int = 0
    stop: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of all that changes a reply."""
        body = [self.kind, self.prompt, self.answer, self.choices, self.solution, self.max_new_tokens, self.stop]
        return hashlib.sha256(json.dumps(body, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How one question was answered from one policy's cache.

    Attributes:
        correct: Whether the answer is right.
        nll: Negative log-likelihood of the right answer (or the solution) in nats per token, each
            token read with the quantised history.
        given: What was generated, or the choice taken.
        prompt_tokens: Tokens of the prompt.
        seconds: Time it took.
    """

    correct: bool
    nll: float
    given: str
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """A policy on some questions of one task.

    Attributes:
        kind: The task.
        accuracy: Share of right answers, 0 to 1, with its 95% Wilson interval over questions.
        nll: Mean NLL of the right answers in nats per token, with a 95% bootstrap interval over questions.
        replies: One per question, in order.
    """

    kind: TaskKind
    accuracy: Interval
    nll: Interval
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDifference:
    """A policy against full precision on the same questions; 95% intervals, questions resampled together.

    Attributes:
        accuracy: Change of the share of right answers, -1 to 1.
        nll: Change of the NLL of the right answers in nats per token.
        lost: Questions that full precision answers and the policy does not.
        gained: The other way round.
    """

    accuracy: Interval
    nll: Interval
    lost: int
    gained: int


def same_questions(one: TaskScore, other: TaskScore) -> bool:
    """Whether two scores have as many replies of the same task, as those to the same questions do."""
    return one.kind == other.kind and len(one.replies) == len(other.replies)


def question_set_digest(questions: Sequence[Question]) -> str:
    """SHA-256 of some questions in order."""
    return hashlib.sha256("".join(question.digest for question in questions).encode()).hexdigest()
