"""Generates text from the really quantised cache, token by token."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedTokenizerBase

from kvtuner_core.domain.memory import cache_bytes, check_layers
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Emit
from kvtuner_core.domain.precision import FULL_PAIR
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.domain.tasks import GenerateTask, Generation, TokenEvent
from kvtuner_core.errors import InputError
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.decoding import Decoder
from kvtuner_core.runtime.in_place.support import Kernels, chosen_kernels
from kvtuner_core.runtime.loading import LoadedModel, filled_layers
from kvtuner_core.runtime.provenance import device_name

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def generate(
    loaded: LoadedModel, task: GenerateTask, *, emit: Emit | None = None, cancelled: Callable[[], bool] | None = None
) -> Generation:
    """Read the prompt, then generate until an end token, the limit, or a cancel.

    Args:
        loaded: The model that the task names.
        task: Prompt, policy and sampling.
        emit: Receives a `TokenEvent` a token.
        cancelled: Polled before each token; once true, what there is so far is the answer.

    Raises:
        InputError: If the prompt is empty or too long, or a number is out of range.
        PolicyError: If the policy does not fit the model.
    """
    ids = _prompt_ids(loaded, task)
    cache = new_cache(loaded, task.policy, prefill=task.prefill, max_tokens=len(ids) + task.max_new_tokens)
    text = _Detokeniser(loaded.tokenizer)
    started = time.perf_counter()
    with torch.inference_mode():
        decoder = Decoder(loaded.model, cache)
        choose = _Choice(loaded.device, task)
        token = choose(decoder.prefill(torch.tensor([ids], device=loaded.device)))
        _synchronise(loaded.device)
        prefill = time.perf_counter() - started
        started = time.perf_counter()
        ends = end_tokens(loaded)
        tokens: list[int] = []
        while token not in ends and len(tokens) < task.max_new_tokens and not (cancelled and cancelled()):
            tokens.append(token)
            piece = text.push(token)
            if emit is not None:
                emit(TokenEvent(token=token, text=piece))
            # The last token goes through the cache, too: its bytes are those of everything generated.
            token = choose(decoder.step(torch.tensor([[token]], device=loaded.device)))
        _synchronise(loaded.device)
    path = decoder.path
    decoder.close()
    seconds = time.perf_counter() - started
    text.finish()
    return Generation(
        text="".join(text.pieces),
        token_ids=tuple(tokens),
        token_texts=tuple(text.pieces),
        prompt_tokens=len(ids),
        cache_bytes=_measured_bytes(cache),
        full_precision_bytes=_full_bytes(loaded, len(ids) + len(tokens)),
        tokens_per_second=len(tokens) / seconds if tokens else 0.0,
        prefill_seconds=prefill,
        device=device_name(loaded.device),
        decoding=path,
    )


def _prompt_ids(loaded: LoadedModel, task: GenerateTask) -> list[int]:
    if not 1 <= task.max_new_tokens <= loaded.info.max_positions:
        raise InputError(
            f"max_new_tokens must be from 1 to the model's {loaded.info.max_positions} positions; "
            f"got {task.max_new_tokens}."
        )
    if not 0 <= task.temperature <= 100:
        raise InputError(f"temperature must be from 0 (greedy) to 100; got {task.temperature}.")
    tokenizer = loaded.tokenizer
    if task.chat and tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": task.prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    else:
        ids = list(tokenizer(task.prompt, verbose=False).input_ids)
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    if not ids:
        raise InputError("The prompt must have at least one token; got an empty text.")
    if len(ids) + task.max_new_tokens > loaded.info.max_positions:
        raise InputError(
            f"Prompt and new tokens must fit the model's {loaded.info.max_positions} positions; "
            f"got {len(ids)} + {task.max_new_tokens}. Shorten the prompt or lower max_new_tokens."
        )
    return ids


def new_cache(
    loaded: LoadedModel, policy: KVPolicy | None, *, max_tokens: int, prefill: PrefillMode = PrefillMode.FULL
) -> Cache:
    """An empty cache that stores as ``policy`` says, or as the model itself does for ``None``.

    Args:
        loaded: The model.
        policy: The bits of each layer, or ``None`` for full precision.
        max_tokens: Tokens of a sequence to make room for at once.
        prefill: What prompt tokens attend to.

    Raises:
        PolicyError: If the policy does not fit the model.
    """
    if policy is None:
        if chosen_kernels(loaded.device) is Kernels.REFERENCE:
            return DynamicCache(config=loaded.model.config)
        policy = KVPolicy.uniform(FULL_PAIR, layers=len(loaded.info.layers), scheme=QuantScheme.per_token())
    check_layers(policy, loaded.info.layers)
    return QuantizedKVCache(policy, loaded.model, prefill=prefill, max_tokens=max_tokens)


class _Choice:
    """Picks the next token of the one sequence: the likeliest, or a draw at the task's temperature."""

    def __init__(self, device: torch.device, task: GenerateTask) -> None:
        self._temperature = task.temperature
        self._generator = torch.Generator(device=device).manual_seed(task.seed)

    def __call__(self, logits: Tensor) -> int:
        """The token after logits ``[1, V]``."""
        if self._temperature == 0:
            return int(logits[0].argmax())
        probabilities = (logits[0].float() / self._temperature).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


@dataclass(slots=True)
class _Detokeniser:
    """Turns tokens into pieces of text that join to the whole, characters of several tokens included.

    A piece is the difference of two decodings of the recent tokens, so that tokenizers which
    depend on neighbours (spaces, bytes of one character) come out right.
    """

    tokenizer: PreTrainedTokenizerBase
    pieces: list[str] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _start: int = 0
    _shown: int = 0

    def push(self, token: int) -> str:
        """The text that ``token`` adds; empty while a character is incomplete."""
        self._tokens.append(token)
        before, after = self._decode(self._start, self._shown), self._decode(self._start, len(self._tokens))
        piece = ""
        if not after.endswith(_REPLACEMENT) and len(after) > len(before):
            piece = after[len(before) :]
            self._start, self._shown = self._shown, len(self._tokens)
        self.pieces.append(piece)
        return piece

    def finish(self) -> None:
        """Give the last token what is left, such as an unfinished character."""
        if self.pieces and self._shown < len(self._tokens):
            before, after = self._decode(self._start, self._shown), self._decode(self._start, len(self._tokens))
            self.pieces[-1] += after[len(before) :]

    def _decode(self, start: int, stop: int) -> str:
        return str(
            self.tokenizer.decode(
                self._tokens[start:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Token ids after which the model says no more."""
    ends: set[int] = set()
    config = getattr(loaded.model, "generation_config", None)
    for value in (getattr(config, "eos_token_id", None), loaded.tokenizer.eos_token_id):
        if isinstance(value, int):
            ends.add(value)
        elif isinstance(value, Sequence):
            ends.update(int(one) for one in value)
    return frozenset(ends)


def _measured_bytes(cache: Cache) -> int:
    if isinstance(cache, QuantizedKVCache):
        return cache.measured_bytes()
    return sum(tensor.numel() * tensor.element_size() for pair in filled_layers(cache) for tensor in pair)


def _full_bytes(loaded: LoadedModel, tokens: int) -> int:
    layers = loaded.info.layers
    policy = KVPolicy.uniform(FULL_PAIR, layers=len(layers), scheme=QuantScheme.per_token())
    return cache_bytes(policy, layers, tokens=tokens, full_bytes=loaded.dtype.itemsize)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
