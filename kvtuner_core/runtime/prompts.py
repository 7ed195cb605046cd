"""Cuts prompts into a prefix that is read first and a suffix that is scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kvtuner_core.domain.prompts import MIN_PREFIX, MIN_SUFFIX, Prompt
from kvtuner_core.errors import PromptError


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPrompt:
    """Token ids of one prompt.

    Attributes:
        index: Position in the prompt set.
        prefix: Read first.
        suffix: Scored while it reads the quantised prefix.
        following: The text's next token after the suffix, or ``None`` at its end.
    """

    index: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    following: int | None


def cut_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_tokens: int,
    suffix_tokens: int,
    max_positions: int,
) -> tuple[CutPrompt, ...]:
    """Cut every prompt; a text that is too short gives a shorter prefix.

    A text is cut after its first ``prefix_tokens``. A prompt with a completion gives its last
    ``prefix_tokens`` tokens (and its begin token, where the tokenizer sets one) and the
    completion's first ``suffix_tokens``.

    Raises:
        PromptError: If there are no prompts, or one is too short; the line says which.
    """
    if suffix_tokens < MIN_SUFFIX or prefix_tokens < MIN_PREFIX:
        raise PromptError(
            f"prefix_tokens must be at least {MIN_PREFIX} and suffix_tokens at least {MIN_SUFFIX}; "
            f"got {prefix_tokens} and {suffix_tokens}."
        )
    if prefix_tokens + suffix_tokens > max_positions:
        raise PromptError(
            f"prefix_tokens + suffix_tokens must be within the model's {max_positions} positions; "
            f"got {prefix_tokens} + {suffix_tokens}. Lower prefix_tokens."
        )
    if not prompts:
        raise PromptError("At least one prompt is needed; got none.")
    return tuple(
        _cut(index, prompt, tokenizer, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens)
        for index, prompt in enumerate(prompts)
    )


def _cut(
    index: int, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, prefix_tokens: int, suffix_tokens: int
) -> CutPrompt:
    ids = list(tokenizer(prompt.text, verbose=False).input_ids)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    if prompt.completion:
        rest = list(tokenizer(prompt.completion, add_special_tokens=False, verbose=False).input_ids)
        prefix = _last(ids, prefix_tokens, tokenizer.bos_token_id)
    else:
        edge = min(prefix_tokens, max(0, len(ids) - suffix_tokens))
        prefix, rest = ids[:edge], ids[edge:]
    suffix = rest[:suffix_tokens]
    if len(prefix) < MIN_PREFIX or len(suffix) < MIN_SUFFIX:
        raise PromptError(
            f"Every prompt needs {MIN_PREFIX} tokens of prefix and {MIN_SUFFIX} of suffix; prompt {index + 1} has "
            f"{len(prefix)} and {len(suffix)}. Use longer texts, or score fewer tokens of each (suffix_tokens)."
        )
    following = rest[len(suffix)] if len(rest) > len(suffix) else None
    return CutPrompt(index=index, prefix=tuple(prefix), suffix=tuple(suffix), following=following)


def _last(ids: list[int], count: int, begin: int | None) -> list[int]:
    if len(ids) <= count:
        return ids
    if begin is not None and ids[0] == begin:
        return [begin, *ids[len(ids) - count + 1 :]]
    return ids[-count:]
