"""What a search gained over a uniform policy, in two numbers."""

from dataclasses import dataclass

from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.errors import InputError
from kvtuner_core.services.picking import Budget, pick


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A search beside one uniform baseline.

    Attributes:
        baseline: The uniform policy.
        same_memory: Best searched policy that needs no more bits than it, or ``None``.
        same_quality: Narrowest searched policy whose KL is no higher than its, or ``None``.
    """

    baseline: Candidate
    same_memory: Candidate | None
    same_quality: Candidate | None


def gain(result: SearchResult, name: str = "K4V4") -> Gain | None:
    """The search beside the uniform policy ``name``, or ``None`` where that was not measured."""
    baseline = next((item for item in result.baselines if item.policy.name == name), None)
    if baseline is None:
        return None
    as_good = [item for item in result.front if item.kl.mean <= baseline.kl.mean]
    return Gain(
        baseline=baseline,
        same_memory=within(result, baseline.effective_bits),
        same_quality=min(as_good, key=lambda item: item.effective_bits, default=None),
    )


def within(result: SearchResult, bits: float) -> Candidate | None:
    """The best policy within some effective bits, or ``None`` where none is so narrow."""
    try:
        return pick(result, Budget(max_bits=bits))
    except InputError:
        return None
