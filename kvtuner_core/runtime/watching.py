"""Watches evaluations that go on pass by pass, and says which of them need no more."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from kvtuner_core.domain.stopping import PartialScore, Stopping
from kvtuner_core.runtime.divergence import Divergence
from kvtuner_core.runtime.prompts import CutPrompt
from kvtuner_core.runtime.replay import Batch
from kvtuner_core.runtime.scoring import prompt_loss


class _Pass(Protocol):
    @property
    def batch(self) -> Batch: ...


P = TypeVar("P", bound=_Pass)


class Watch:
    """Some policies on their way through the passes over a set of prompts.

    Args:
        stopping: Which objective, and which prompts tell most of it.
        bars: The bar of each policy.
        prompts: The whole set.
    """

    def __init__(self, stopping: Stopping, bars: Sequence[float], prompts: Sequence[CutPrompt]) -> None:
        self._stopping = stopping
        self._bars = bars
        self._tokens = tuple(len(prompt.suffix) for prompt in prompts)
        self._seen: dict[int, PartialScore] = {}
        self._stopped: set[int] = set()

    def ordered(self, passes: Sequence[P]) -> list[P]:
        """The passes, those first whose tokens have most of the loss as a rule; of equals the first ones."""
        share = self._stopping.telling
        if not share:
            return list(passes)

        def each_token(one: P) -> float:
            indices = [prompt.index for prompt in one.batch.prompts]
            return sum(share[index] for index in indices) / sum(self._tokens[index] for index in indices)

        return sorted(passes, key=each_token, reverse=True)

    def goes_on(self, policy: int, results: Mapping[int, Divergence]) -> bool:
        """Take in what a policy has of each prompt, by index, after a pass; whether it needs the next one."""
        before = self._seen.get(policy)
        seen, losses, ends = ((), (), ()) if before is None else (before.prompts, before.losses, before.ends)
        new = tuple(index for index in results if index not in seen)
        partial = PartialScore(
            objective=self._stopping.objective,
            prompts=seen + new,
            losses=losses + tuple(prompt_loss(self._stopping.objective, results[index]) for index in new),
            ends=(*ends, len(seen) + len(new)),
            tokens_per_prompt=self._tokens,
        )
        self._seen[policy] = partial
        if partial.left and partial.within(self._bars[policy]) is not None:
            self._stopped.add(policy)
        return policy not in self._stopped

    def partial(self, policy: int) -> PartialScore | None:
        """What was seen of a policy that was stopped with prompts left, or ``None``."""
        return self._seen[policy] if policy in self._stopped else None
