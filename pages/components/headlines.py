"""What a search gained over uniform policies, budget by budget."""

import math
from dataclasses import dataclass

from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.study import Candidate, SearchResult
from kvtuner_core.errors import InputError
from kvtuner_core.services.picking import Budget, pick


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The best policies within one budget.

    Attributes:
        bits: Most effective bits.
        searched: Best policy of the front.
        uniform: Best uniform policy that was measured, or ``None`` where none is so narrow.
        objective: What they are judged by.
    """

    bits: float
    searched: Candidate
    uniform: Candidate | None
    objective: Objective = Objective.MEAN_KL

    @property
    def less(self) -> float | None:
        """By which share the searched loss is below the uniform one; ``None`` where there is nothing to compare."""
        if self.uniform is None:
            return None
        searched, uniform = (loss(item, self.objective) for item in (self.searched, self.uniform))
        return 1 - searched / uniform if uniform > 0 else None


def loss(item: Candidate, objective: Objective) -> float:
    """What a policy is judged by: the objective on evaluation prompts where there is one."""
    return objective.loss(item.value(objective).mean)


def steps(result: SearchResult) -> tuple[Step, ...]:
    """The search beside uniform policies within each whole number of effective bits that the front spans."""
    if not result.front:
        return ()
    bits = [item.effective_bits for item in result.front]
    found = []
    for most in range(math.ceil(min(bits)), math.ceil(max(bits)) + 1):
        searched = within(result, most)
        if searched is not None:
            uniform = best_uniform(result, most)
            found.append(Step(bits=most, searched=searched, uniform=uniform, objective=result.spec.objective))
    return tuple(found)


def best_uniform(result: SearchResult, bits: float) -> Candidate | None:
    """The uniform policy with the lowest loss within some effective bits, or ``None``."""
    fitting = [item for item in result.baselines if item.effective_bits <= bits]
    return min(fitting, key=lambda item: loss(item, result.spec.objective), default=None)


def within(result: SearchResult, bits: float) -> Candidate | None:
    """The best searched policy within some effective bits, or ``None`` where none is so narrow."""
    try:
        return pick(result, Budget(max_bits=bits))
    except InputError:
        return None


def middle(result: SearchResult) -> float:
    """A budget in the middle of the front, in effective bits, to begin with."""
    bits = [item.effective_bits for item in result.front]
    return max(round(min(bits) + max(bits)) / 2, min(bits))
