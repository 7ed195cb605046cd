"""Health checks of a finished search, in plain words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.precision import FULL_BITS
from kvtuner_core.domain.strategy import Constraints
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.tuning.correlation import spearman

_WIDE_INTERVAL = 0.35
_TWO_CARRY = 0.6
_FEWEST_PROMPTS = 4
_LITTLE_KL = 0.05
_MUCH_KL = 0.01
_SURE_ORDER = 0.95
_OVERFIT = 1.15
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        good: Whether nothing is to be done about it; a remark counts as good.
        text: What was found, with its numbers, and the way out where there is one.
    """

    name: str
    good: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """Calibration against evaluation prompts, over the front and the uniform policies, in the objective.

    Attributes:
        rank_correlation: Spearman's between the two; ``None`` where there are too few.
        front_ratio: Median of evaluation / calibration over the front.
        uniform_ratio: The same over the uniform policies, which nothing was fitted to.
        beaten: Policies of the front that another one beats on evaluation prompts.
        front: Policies of the front.
    """

    rank_correlation: float | None
    front_ratio: float | None
    uniform_ratio: float | None
    beaten: int
    front: int

    @property
    def excess(self) -> float | None:
        """How much more the front loses on other prompts than the uniform policies do; 1 is nothing."""
        if not self.front_ratio or not self.uniform_ratio:
            return None
        return self.front_ratio / self.uniform_ratio


def overfit(result: SearchResult) -> Overfit:
    """How far the order and the size of the losses change on prompts that the search did not see."""
    objective = result.spec.objective
    pairs = [
        _both(item, objective)
        for item in (*result.front, *result.baselines)
        if item.evaluation and not item.policy.is_full
    ]
    evaluated = [(item.effective_bits, _both(item, objective)[1]) for item in result.front]
    return Overfit(
        rank_correlation=spearman([one for one, _ in pairs], [other for _, other in pairs]),
        front_ratio=_ratio(result.front, objective),
        uniform_ratio=_ratio([item for item in result.baselines if not item.policy.is_full], objective),
        beaten=sum(
            any(bits <= own[0] and loss <= own[1] and (bits, loss) != own for bits, loss in evaluated)
            for own in evaluated
        ),
        front=len(result.front),
    )


def _both(item: Candidate, objective: Objective) -> tuple[float, float]:
    return item.loss(objective), objective.loss(item.value(objective).mean)


def _ratio(items: Sequence[Candidate], objective: Objective) -> float | None:
    pairs = [_both(item, objective) for item in items]
    ratios = [seen / known for known, seen in pairs if known > 0]
    return median(ratios) if ratios else None


def distinguishable(
    one: PolicyScore, other: PolicyScore, *, objective: Objective = Objective.MEAN_KL, seed: int = 0
) -> bool:
    """Whether two policies differ by more than the prompts could have made by chance.

    Both were scored on the same prompts, so the prompts are resampled together (2,000 times) and
    the 95% interval of the difference must leave out 0. Scores on other prompts are compared by
    their own intervals: they must not overlap. Of an objective that is no mean over tokens, such as a
    percentile, the values of the single prompts are compared.
    """
    first, second = one.measured(objective), other.measured(objective)
    if one.tokens_per_prompt != other.tokens_per_prompt:
        return first.interval.high < second.interval.low or second.interval.high < first.interval.low
    weights = np.array(one.tokens_per_prompt, dtype=np.float64)
    apart = (np.array(first.per_prompt) - np.array(second.per_prompt)) * weights
    if len(weights) < 2 or not np.isfinite(apart).all():
        return False
    drawn = np.random.default_rng(seed).integers(len(weights), size=(_RESAMPLES, len(weights)))
    means = apart[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return bool(low > 0 or high < 0)


def health_checks(result: SearchResult) -> tuple[Check, ...]:
    """What a person should know before trusting a front."""
    if not result.front:
        return ()
    return (*_edges(result), _tokens(result), _carried(result), _order(result), *_remarks(result))


def _edges(result: SearchResult) -> Iterator[Check]:
    narrowest, widest = result.front[0], result.front[-1]
    bits = sorted(set(result.spec.sweep.bits))
    at_bottom = all(pair == layer.pairs[0] for layer in narrowest.policy.layers for pair in layer.pairs) and all(
        max(layer.pair.key_bits, layer.pair.value_bits) == bits[0] for layer in narrowest.policy.layers
    )
    if at_bottom and narrowest.kl.mean < _LITTLE_KL and bits[0] > 2:
        text = f"The narrowest policy loses only {narrowest.kl.mean:.3g} nats: sweep fewer bits than {bits[0]}, too."
        yield Check(name="edge of the space", good=False, text=text)
    elif widest.kl.mean > _MUCH_KL and bits[-1] < FULL_BITS and not _is_bounded(result):
        text = f"The widest policy still loses {widest.kl.mean:.3g} nats: sweep more bits than {bits[-1]}, too."
        yield Check(name="edge of the space", good=False, text=text)
    else:
        text = f"KL {widest.kl.mean:.3g} nats at the wide end, {narrowest.kl.mean:.3g} at the narrow one."
        yield Check(name="edge of the space", good=True, text=text)


def _is_bounded(result: SearchResult) -> bool:
    """Whether the search itself was told to keep away from the wide end."""
    return result.spec.max_bits is not None or result.spec.constraints != Constraints()


def _tokens(result: SearchResult) -> Check:
    widths = [
        (item.kl.high - item.kl.low) / 2 / item.kl.mean
        for item in result.front
        if item.kl.mean > 0 and math.isfinite(item.kl.high)
    ]
    width = median(widths) if widths else math.inf
    score = result.front[0].evaluation or result.front[0].calibration
    text = (
        f"{score.tokens} tokens of {score.prompts} evaluation prompts: "
        f"half of the front is known to within {100 * width:.0f}%."
    )
    if width <= _WIDE_INTERVAL:
        return Check(name="tokens", good=True, text=text)
    return Check(name="tokens", good=False, text=f"{text} Use more prompts or longer suffixes.")


def _carried(result: SearchResult) -> Check:
    shares = [_two_largest(item.evaluation or item.calibration) for item in result.front]
    share, prompts = median(shares), (result.front[0].evaluation or result.front[0].calibration).prompts
    text = f"The two prompts that lose most make {100 * share:.0f}% of the KL of {prompts} prompts."
    if prompts < _FEWEST_PROMPTS:
        return Check(name="prompts", good=False, text=f"Only {prompts} evaluation prompts: use at least twelve.")
    if share > _TWO_CARRY:
        return Check(name="prompts", good=False, text=f"{text} Use more prompts, or look at those two.")
    return Check(name="prompts", good=True, text=text)


def _two_largest(score: PolicyScore) -> float:
    parts = sorted(kl * tokens for kl, tokens in zip(score.kl_per_prompt, score.tokens_per_prompt, strict=True))
    total = sum(parts)
    return sum(parts[-2:]) / total if total > 0 and math.isfinite(total) else 0.0


def _order(result: SearchResult) -> Check:
    found = overfit(result)
    if found.rank_correlation is None or found.excess is None:
        return Check(
            name="overfit", good=False, text="Too few policies to compare calibration with evaluation prompts."
        )
    text = (
        f"Rank correlation of calibration and evaluation {result.spec.objective.label} "
        f"{found.rank_correlation:.3f}; on prompts it did not see the front "
        f"loses {found.front_ratio:.2f} times what it lost on those it saw (uniform policies "
        f"{found.uniform_ratio:.2f}); {found.beaten} of {found.front} policies are beaten there by another."
    )
    good = found.rank_correlation >= _SURE_ORDER and found.excess <= _OVERFIT
    return Check(name="overfit", good=good, text=text if good else f"{text} Use more calibration prompts.")


def _remarks(result: SearchResult) -> Iterator[Check]:
    spec = result.spec.sweep
    text = "KL counts tokens that read the quantised history; the prompt itself was read in full precision."
    yield Check(name="prefill", good=True, text=text)
    if not spec.scheme.has_window and not spec.scheme.sink_length:
        yield Check(name="window", good=True, text="No window and no sinks: effective bits hold at every length.")
        return
    layers, tokens = result.sweep.model.layers, spec.prefix_tokens
    scalars = tokens * sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    middle = result.front[len(result.front) // 2]
    held = 8 * cache_bytes(middle.policy, layers, tokens=tokens) / scalars
    share = spec.scheme.residual_share
    then = f"the window grows with length, {100 * share:g}% of it" if share else "the difference fades with length"
    text = (
        f"With its full-precision window a policy of {middle.effective_bits:.2f} effective bits holds {held:.2f} "
        f"bits per number at {tokens} tokens; {then}."
    )
    yield Check(name="window", good=True, text=text)
