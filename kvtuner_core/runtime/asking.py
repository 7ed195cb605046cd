"""Asks a question of the live model through the really packed cache, as a program that serves it would.

The prompt is read in one pass, all but its last token; then it lies packed, and everything after it is
decoded token by token and reads the packed history. Several continuations of one prompt are decoded
beside each other as sequences of a batch: the model's own, and those whose likelihood is asked for.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtuner_core.domain.questions import Question, Reply, TaskKind
from kvtuner_core.domain.tasks import AskTask, TokenCounts
from kvtuner_core.errors import CancelledError, InputError
from kvtuner_core.runtime.decoding import Decoder
from kvtuner_core.runtime.generation import end_tokens, new_cache
from kvtuner_core.runtime.loading import LoadedModel

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def ask(loaded: LoadedModel, task: AskTask, *, cancelled: Callable[[], bool] | None = None) -> Reply:
    """Ask one question.

    Args:
        loaded: The model that the task names.
        task: The question, and how the cache is stored.
        cancelled: Polled before each token.

    Raises:
        InputError: If prompt or continuations are too short or too long for the model.
        PolicyError: If the policy does not fit the model.
        CancelledError: If ``cancelled`` was true.
    """
    started = time.perf_counter()
    question = task.question
    prompt = _prompt_ids(loaded, question)
    rows = [_Row(given=tuple(ids)) for ids in _forced(loaded, question)]
    free = None
    if question.kind is not TaskKind.MULTIPLE_CHOICE:
        answer = _ids(loaded, question.answer)
        free = _Row(limit=question.max_new_tokens or len(answer), ends=end_tokens(loaded))
        rows.append(free)
    _decode(loaded, task, prompt, rows, cancelled)
    correct, given = _judge(loaded, question, rows, free)
    return Reply(
        correct=correct,
        nll=_right_nll(question, rows),
        given=given,
        prompt_tokens=len(prompt),
        seconds=time.perf_counter() - started,
    )


def count_tokens(loaded: LoadedModel, texts: Sequence[str]) -> TokenCounts:
    """Tokens of each text, without special ones."""
    return TokenCounts(counts=tuple(len(_ids(loaded, text)) for text in texts))


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    """One continuation: a given one, whose likelihood adds up, or a free one.

    Attributes:
        given: Token ids of a given one.
        limit: Most tokens of a free one.
        ends: Tokens that end a free one.
        tokens: What was decoded.
        nll: Sum over the given tokens in nats.
        over: Whether nothing more is to come.
    """

    given: tuple[int, ...] = ()
    limit: int = 0
    ends: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    nll: float = 0.0
    over: bool = False

    def take(self, logits: Tensor) -> int:
        """The row's next token after logits ``[V]``; once over, the last one again, whose result nobody reads."""
        if self.over:
            return self.tokens[-1] if self.tokens else 0
        if self.given:
            token = self.given[len(self.tokens)]
            self.nll -= float(logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[token])
        else:
            token = int(logits.argmax())
        if token in self.ends:
            self.over = True
            return token
        self.tokens.append(token)
        self.over = len(self.tokens) == (len(self.given) or self.limit)
        return token


def _decode(
    loaded: LoadedModel,
    task: AskTask,
    prompt: Sequence[int],
    rows: Sequence[_Row],
    cancelled: Callable[[], bool] | None,
) -> None:
    most = max(len(row.given) or row.limit for row in rows)
    cache = new_cache(loaded, task.policy, max_tokens=len(prompt) + most)
    decoder = Decoder(loaded.model, cache)
    with torch.inference_mode():
        decoder.prefill(torch.tensor([prompt[:-1]], device=loaded.device))
        cache.batch_repeat_interleave(len(rows))
        tokens = [prompt[-1]] * len(rows)
        while not all(row.over for row in rows):
            if cancelled is not None and cancelled():
                raise CancelledError("The question was stopped on request; those answered are kept.")
            logits = decoder.step(torch.tensor(tokens, device=loaded.device)[:, None])
            tokens = [row.take(one) for row, one in zip(rows, logits, strict=True)]
            if _stopped(loaded, task.question, rows):
                break
    decoder.close()


def _stopped(loaded: LoadedModel, question: Question, rows: Sequence[_Row]) -> bool:
    """Whether the free row has written its stop text; the given ones are not cut short by it."""
    free = rows[-1]
    if not question.stop or free.given or free.over:
        return False
    free.over = question.stop in _text(loaded, free.tokens[-16:])
    return all(row.over for row in rows)


def _prompt_ids(loaded: LoadedModel, question: Question) -> list[int]:
    ids = list(loaded.tokenizer(question.prompt, verbose=False).input_ids)
    if ids and ids[-1] == loaded.tokenizer.eos_token_id:
        ids.pop()
    continuations = (question.answer, question.solution, *question.choices)
    most = max(question.max_new_tokens, *(len(_ids(loaded, text)) for text in continuations))
    if len(ids) < 2:
        raise InputError(f"A question's prompt needs at least 2 tokens; got {len(ids)}. Use a longer prompt.")
    if len(ids) + most > loaded.info.max_positions:
        raise InputError(
            f"Prompt and answer must fit the model's {loaded.info.max_positions} positions; got {len(ids)} + {most}. "
            "Use shorter prompts."
        )
    return ids


def _forced(loaded: LoadedModel, question: Question) -> list[list[int]]:
    texts = question.choices or (question.solution or question.answer,)
    forced = [_ids(loaded, text) for text in texts]
    if not all(forced):
        raise InputError("Every answer needs at least one token; got an empty one. Leave the question out.")
    return forced


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) if text else []


def _text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _right_nll(question: Question, rows: Sequence[_Row]) -> float:
    right = rows[question.choices.index(question.answer)] if question.choices else rows[0]
    return right.nll / len(right.given)


def _judge(loaded: LoadedModel, question: Question, rows: Sequence[_Row], free: _Row | None) -> tuple[bool, str]:
    if free is None:
        scores = [row.nll / len(text) for row, text in zip(rows, question.choices, strict=True)]
        taken = question.choices[scores.index(min(scores))]
        return taken == question.answer, taken
    given = _text(loaded, free.tokens)
    if question.stop:
        given = given.split(question.stop)[0]
    return matches(given, question.answer, exact=question.kind is TaskKind.RECALL), given


def matches(given: str, answer: str, *, exact: bool) -> bool:
    """Whether a generated text gives the answer; space around it does not count.

    Args:
        given: What was generated.
        answer: What is right.
        exact: Whether nothing else may be there; else a number may be the last one of a longer text.
    """
    if given.strip() == answer.strip():
        return True
    wanted = _number(answer)
    if exact or wanted is None or _NUMBER.fullmatch(answer.strip()) is None:
        return False
    return _number(given) == wanted


def _number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
