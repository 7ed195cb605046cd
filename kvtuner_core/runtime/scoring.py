"""One policy's score from what happened to every token: a function per objective, intervals over prompts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from kvtuner_core.domain.metrics import Interval, Measured, PolicyScore
from kvtuner_core.domain.objective import Objective
from kvtuner_core.runtime.divergence import Divergence, bootstrap, resamples

_TAIL = 0.95
_TAIL_RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """What teacher forcing saw of one policy.

    Attributes:
        prompts: The change of every scored prediction, prompt by prompt, in the set's order.
        seed: Seed of the bootstrap; one for all policies, so that they share their resamples.
    """

    prompts: Sequence[Divergence]
    seed: int

    @property
    def tokens(self) -> np.ndarray:
        """Scored tokens of each prompt."""
        return np.array([one.kl.size for one in self.prompts])


def policy_score(observed: Observed, *, cache_bytes: int, seconds: float) -> PolicyScore:
    """Every objective of one policy.

    Args:
        observed: Its token-wise changes.
        cache_bytes: Bytes of its packed cache; see `PolicyScore`.
        seconds: Time the evaluation took.
    """
    means = np.array([prompt_loss(Objective.MEAN_KL, one) for one in observed.prompts])
    change = np.concatenate([one.nll_change for one in observed.prompts])
    return PolicyScore(
        kl=bootstrap(means, observed.tokens, seed=observed.seed),
        top1_agreement=float(np.concatenate([one.agrees for one in observed.prompts]).mean()),
        nll_change=float(np.nanmean(change)),
        kl_per_prompt=tuple(float(mean) for mean in means),
        tokens_per_prompt=tuple(int(count) for count in observed.tokens),
        cache_bytes=cache_bytes,
        seconds=seconds,
        others=tuple(measure(observed) for measure in _MEASURES),
    )


def tail(observed: Observed) -> Measured:
    """The 95th percentile of the token KLs, with a 95% interval from 500 resamples of prompts.

    It is the smallest KL that at least 95% of the tokens do not exceed. A resample counts each
    prompt's tokens as often as the prompt was drawn.
    """
    kls = [one.kl for one in observed.prompts]
    every = np.concatenate(kls)
    order = np.argsort(every, kind="stable")
    owner = np.repeat(np.arange(len(kls)), observed.tokens)[order]
    times = _times_drawn(len(kls), observed.seed)
    above = _largest_beyond(times, owner, most=times @ observed.tokens)
    found = every[order][len(every) - 1 - above]
    low, high = np.quantile(found[1:], [0.025, 0.975], method="inverted_cdf")
    return Measured(
        objective=Objective.P95_KL,
        interval=Interval(mean=float(found[0]), low=float(low), high=float(high)),
        per_prompt=tuple(float(np.quantile(one, _TAIL, method="inverted_cdf")) for one in kls),
    )


def _largest_beyond(times: np.ndarray, owner: np.ndarray, *, most: np.ndarray) -> np.ndarray:
    """How many of the largest tokens are beyond the 95th percentile, ``[draws]``: all that fit into 5% of the tokens.

    Args:
        times: ``[draws, prompts]``, how often each prompt counts.
        owner: ``[tokens]``, the prompt of each token, by rising KL.
        most: ``[draws]``, tokens of each draw.
    """
    size = len(owner) // 8 + 1
    while True:
        # Whole tokens, so that a share of exactly 95% is not missed by a rounding error.
        fits = 100 * times[:, owner[: -size - 1 : -1]].cumsum(1) <= 5 * most[:, None]
        beyond: np.ndarray = fits.sum(1)
        if size >= len(owner) or beyond.max() < size:
            return beyond
        size *= 2


@functools.lru_cache(maxsize=8)
def _times_drawn(prompts: int, seed: int) -> np.ndarray:
    """``[1 + resamples, prompts]``, how often each prompt counts: once first, then as often as it was drawn."""
    drawn = resamples(prompts, _TAIL_RESAMPLES, seed=seed)
    counts = np.stack([np.bincount(row, minlength=prompts) for row in (np.arange(prompts), *drawn)])
    counts.setflags(write=False)
    return counts


def likelihood(observed: Observed) -> Measured:
    """The change of the text's negative log-likelihood, over the tokens that have a next one."""
    means = np.array([np.nanmean(one.nll_change) for one in observed.prompts])
    labelled = np.array([np.isfinite(one.nll_change).sum() for one in observed.prompts])
    return _mean(Objective.NLL_CHANGE, means, labelled, observed.seed)


def disagreement(observed: Observed) -> Measured:
    """The share of tokens whose most likely next token changes."""
    means = np.array([prompt_loss(Objective.TOP1_DISAGREEMENT, one) for one in observed.prompts])
    return _mean(Objective.TOP1_DISAGREEMENT, means, observed.tokens, observed.seed)


def answers(observed: Observed) -> Measured:
    """The share of prompts whose scored text is not, token for token, what greedy decoding gives.

    Greedy decoding writes a text exactly where each of its tokens is the most likely one after those
    before it, which teacher forcing sees in one pass: no text has to be generated.
    """
    missed = np.array([prompt_loss(Objective.ANSWER_ERROR, one) for one in observed.prompts])
    return _mean(Objective.ANSWER_ERROR, missed, np.ones(len(missed)), observed.seed)


def prompt_loss(objective: Objective, prompt: Divergence) -> float:
    """What one prompt adds to the mean that a bounded objective is."""
    return float(_BOUNDED[objective](prompt))


_BOUNDED: MappingProxyType[Objective, Callable[[Divergence], float]] = MappingProxyType(
    {
        Objective.MEAN_KL: lambda prompt: prompt.kl.mean(),
        Objective.TOP1_DISAGREEMENT: lambda prompt: 1.0 - prompt.agrees.mean(),
        Objective.ANSWER_ERROR: lambda prompt: not prompt.right.all(),
    }
)


def _mean(objective: Objective, means: np.ndarray, weights: np.ndarray, seed: int) -> Measured:
    return Measured(
        objective=objective,
        interval=bootstrap(means, weights, seed=seed),
        per_prompt=tuple(float(mean) for mean in means),
    )


_MEASURES: tuple[Callable[[Observed], Measured], ...] = (tail, likelihood, disagreement, answers)
