"""One policy of a searched front, chosen by a budget of bits or memory."""

from dataclasses import dataclass

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.errors import InputError

GIB = 2**30
_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a cache may cost; at least one bound is given, and both hold where both are.

    Attributes:
        max_bits: Largest effective bits per cached scalar (scales and offsets included).
        max_gib: Largest size of the whole cache in GiB at ``batch`` and ``context``.
        batch: Number of sequences.
        context: Tokens of each sequence.
    """

    max_bits: float | None = None
    max_gib: float | None = None
    batch: int = 1
    context: int = 4096

    def __post_init__(self) -> None:
        if self.max_bits is None and self.max_gib is None:
            raise InputError("A budget needs max_bits or max_gib; got neither. Give for example max_bits 4.")
        for name in ("max_bits", "max_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be a number above 0; got {value!r}.")
        for name in ("batch", "context"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1; got {value!r}.")


def candidate_gib(result: SearchResult, candidate: Candidate, *, batch: int = 1, context: int = 4096) -> float:
    """GiB that the candidate's packed cache occupies, windows and sinks included."""
    layers = result.sweep.model.layers
    return cache_bytes(candidate.policy, layers, tokens=context, batch=batch) / GIB


def pick(result: SearchResult, budget: Budget) -> Candidate:
    """The policy of the front with the lowest loss within the budget.

    The loss is that of the search's objective, on evaluation prompts where there is one, else on
    calibration prompts; of equals the one with fewer bits wins. Baselines and searched policies off
    the front are never picked: the former stand beside the result for comparison.

    Raises:
        InputError: If no policy of the front fits, naming the smallest one.
    """
    if not result.front:
        raise InputError(f"A pick needs a search with a front; run {result.run!r} has none. Finish or resume it.")
    fitting = [candidate for candidate in result.front if _fits(result, candidate, budget)]
    if not fitting:
        raise InputError(_nothing_fits(result, budget))
    objective = result.spec.objective
    return min(fitting, key=lambda item: (objective.loss(item.value(objective).mean), item.effective_bits))


def bits_within(result: SearchResult, budget: Budget) -> float | None:
    """The effective bits that a budget reaches to, which a chart over bits can mark.

    A budget in GiB ends half-way between the largest policy of the front that fits and the smallest
    that does not. ``None`` where all fit, and where a policy that fits has more bits than one that
    does not, as windows in full precision can make it: then no place on the axis is the limit.
    """
    if budget.max_gib is None:
        return budget.max_bits
    fitting = [item.effective_bits for item in result.front if _fits(result, item, budget)]
    others = [item.effective_bits for item in result.front if not _fits(result, item, budget)]
    if not fitting or not others or max(fitting) > min(others):
        return None
    return (max(fitting) + min(others)) / 2


def _fits(result: SearchResult, candidate: Candidate, budget: Budget) -> bool:
    if budget.max_bits is not None and candidate.effective_bits > budget.max_bits + _SLACK:
        return False
    if budget.max_gib is None:
        return True
    size = candidate_gib(result, candidate, batch=budget.batch, context=budget.context)
    return size <= budget.max_gib * (1 + _SLACK)


def _nothing_fits(result: SearchResult, budget: Budget) -> str:
    fewest = min(result.front, key=lambda candidate: candidate.effective_bits)
    size = candidate_gib(result, fewest, batch=budget.batch, context=budget.context)
    asked = []
    if budget.max_bits is not None:
        asked.append(f"max_bits {budget.max_bits:g}")
    if budget.max_gib is not None:
        asked.append(f"max_gib {budget.max_gib:g} at batch {budget.batch} and context {budget.context}")
    return (
        f"A policy of the front must fit the budget; got {' and '.join(asked)}. The smallest has "
        f"{fewest.effective_bits:.3f} effective bits and needs {size:.3g} GiB: allow that, or search with fewer bits."
    )
