"""The one way in which every solver is run: it asks for policies, is told their scores, and asks again."""

from collections.abc import Generator, Iterator
from contextlib import closing

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.ports import Scorer
from kvtuner_core.domain.study import Candidate, CandidateOrigin, StoppedCandidate
from kvtuner_core.tuning.stopping import StoppingRounds, Unfinished

Told = Candidate | StoppedCandidate
"""What became of a policy: its loss is measured or, where its evaluation was stopped, an estimate."""

Asking = Generator[tuple[KVPolicy, ...], tuple[Told, ...], None]
"""A solver: it yields policies to be scored together, is sent what became of them in the same order, and
ends when it has nothing more to ask. What it asks depends on the losses and its seed alone."""


def answered(
    asking: Asking, scorer: Scorer | StoppingRounds, geometry: tuple[LayerGeometry, ...], *, evaluations: int
) -> Iterator[Told]:
    """Score what a solver asks; yields each new candidate once it is scored, until the evaluations are used up.

    A policy that was asked before is answered again without an evaluation, so a count of
    evaluations is a count of different policies, whichever the solver. The policies of a batch
    may be scored at once; those of a batch come ordered by their layers (`KVPolicy.by_layers`).

    Args:
        asking: The solver.
        scorer: Scores policies on the calibration prompts, to the end or not.
        geometry: Cache geometry per layer.
        evaluations: Most policies to score.
    """
    known: dict[KVPolicy, Told] = {}
    try:
        batch = next(asking, ())
        while batch:
            new = tuple(dict.fromkeys(policy for policy in batch if policy not in known))
            new = new[: evaluations - len(known)]
            asked = {policy: place for place, policy in enumerate(new, start=len(known))}
            new = tuple(sorted(new, key=lambda policy: policy.by_layers))
            with closing(scorer.score_many(new)) as scores:
                for policy, score in zip(new, scores, strict=True):
                    known[policy] = _candidate(policy, score, geometry, order=len(known), asked=asked[policy])
                    yield known[policy]
            if len(known) == evaluations:
                return
            batch = asking.send(tuple(known[policy] for policy in batch))
    except StopIteration:
        return
    finally:
        asking.close()


def _candidate(
    policy: KVPolicy, score: PolicyScore | Unfinished, geometry: tuple[LayerGeometry, ...], *, order: int, asked: int
) -> Told:
    bits = effective_bits(policy, geometry)
    if isinstance(score, Unfinished):
        return StoppedCandidate(
            policy=policy,
            nominal_bits=policy.nominal_bits,
            effective_bits=bits,
            partial=score.partial,
            estimate=score.estimate,
            dominated_by=score.dominated_by,
            order=order,
        )
    return Candidate(
        policy=policy,
        origin=CandidateOrigin.SEARCH,
        nominal_bits=policy.nominal_bits,
        effective_bits=bits,
        calibration=score,
        order=order,
        asked=asked,
    )
