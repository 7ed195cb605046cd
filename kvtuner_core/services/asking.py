"""A policy on the questions of a task, full precision beside it, through the really packed cache."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_PAIR
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.questions import Question, Reply, TaskDifference, TaskKind, TaskScore
from kvtuner_core.domain.runs import Progress
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import AskTask, ModelReport
from kvtuner_core.errors import CancelledError, InputError
from kvtuner_core.services.measuring import stamped
from kvtuner_core.services.models import ensure_report
from kvtuner_core.services.policies import Match, PolicyChoice
from kvtuner_core.services.question_files import file_questions, made_questions, shipped_questions
from kvtuner_core.services.recall import RecallSpec
from kvtuner_core.services.requests import MAX_SEED, check_between
from kvtuner_core.services.work import Cancelled, answer_of, never
from kvtuner_core.services.workspace import Workspace
from kvtuner_core.store import reply_identity
from kvtuner_core.tuning.accuracy import task_difference, task_score

DEFAULT_ITEMS = 25
MAX_ITEMS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSource:
    """Where questions come from.

    Attributes:
        kind: The task.
        items: Number of questions.
        seed: Seed of recall questions, and of the intervals.
        pairs: Names with codes in a recall prompt.
        length: Tokens that a recall prompt is to reach with filler text, or ``None``.
        file: A ``.jsonl`` file of the user's own questions, or empty for the shipped ones.
    """

    kind: TaskKind
    items: int = DEFAULT_ITEMS
    seed: int = 0
    pairs: int = 32
    length: int | None = None
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What to ask, and of what.

    Attributes:
        model: Which model.
        policy: Which policy; none means full precision alone.
        source: The questions.
        match: How closely the model must be the policy's.
    """

    model: ModelSpec
    policy: PolicyChoice
    source: QuestionSource
    match: Match = Match.WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvaluation:
    """How a policy does on a task.

    Attributes:
        policy: The policy.
        model: The model.
        score: Its replies.
        full: Those of full precision to the same questions.
        difference: The policy minus full precision.
        nominal_bits: Mean bits without scales and offsets.
        effective_bits: With them.
        provenance: Device, dtype, versions, time.
        reused: Replies that were stored already, out of both.
    """

    policy: KVPolicy
    model: ModelInfo
    score: TaskScore
    full: TaskScore
    difference: TaskDifference
    nominal_bits: float
    effective_bits: float
    provenance: Provenance
    reused: int


@dataclass(slots=True, kw_only=True)
class Asker:
    """Asks questions of one model; each reply is stored before it is reported, and never asked for twice.

    Attributes:
        ws: The workspace.
        model: Which model.
        report: What is known of the loaded model; its fingerprint is part of every key.
        cancelled: Polled before each new question.
        reused: Replies that came from the store so far.
        seed: Seed of the intervals.
    """

    ws: Workspace
    model: ModelSpec
    report: ModelReport
    cancelled: Cancelled = never
    seed: int = 0
    reused: int = field(default=0, init=False)

    def ask(self, policy: KVPolicy | None, question: Question) -> Reply:
        """The reply to one question.

        Raises:
            CancelledError: If somebody asked to stop before a new question.
            KVTunerError: What the model work raised.
        """
        identity = reply_identity(self.report, question, policy)
        known = self.ws.store.get_reply(identity.key)
        if known is not None:
            self.reused += 1
            return known
        if self.cancelled():
            raise CancelledError("The work was stopped on request; what was finished is kept.")
        task = AskTask(model=self.model, policy=policy, question=question)
        reply = answer_of(Reply, self.ws.compute.run(task, cancelled=self.cancelled))
        self.ws.store.put_reply(identity, reply, stamped(self.report))
        return reply

    def both(self, policy: KVPolicy, questions: Sequence[Question]) -> Iterator[tuple[Reply, Reply]]:
        """The replies of a policy and of full precision to each question."""
        for question in questions:
            yield self.ask(None if policy.is_full else policy, question), self.ask(None, question)


def check_source(source: QuestionSource) -> None:
    """Raise `InputError` for questions that cannot be made or read for any model."""
    check_between("items", source.items, 1, MAX_ITEMS)
    check_between("seed", source.seed, 0, MAX_SEED)
    RecallSpec(count=source.items, pairs=source.pairs, length=source.length, seed=source.seed)
    if source.file and source.kind is TaskKind.RECALL:
        raise InputError(f"Recall questions are made from a seed; got the file {source.file!r}. Leave it out.")


def questions_of(ws: Workspace, model: ModelSpec, source: QuestionSource) -> tuple[Question, ...]:
    """The questions that a source names.

    Raises:
        InputError: If they cannot be made or read.
    """
    check_source(source)
    if source.kind is TaskKind.RECALL:
        spec = RecallSpec(count=source.items, pairs=source.pairs, length=source.length, seed=source.seed)
        return made_questions(ws, model, spec)
    if source.file:
        return file_questions(ws, source.kind, source.file, source.items)
    return shipped_questions(source.kind, source.items)


def scores(kind: TaskKind, replies: Sequence[tuple[Reply, Reply]], *, seed: int) -> tuple[TaskScore, TaskScore]:
    """The scores of a policy and of full precision from their replies."""
    own, full = zip(*replies, strict=True)
    return task_score(kind, own, seed=seed), task_score(kind, full, seed=seed)


def evaluate_task(
    ws: Workspace, request: TaskRequest, cancelled: Cancelled = never
) -> Generator[Progress, None, TaskEvaluation]:
    """Ask a policy and full precision the same questions; stored replies are used again.

    Raises:
        InputError: If the request does not fit.
        CancelledError: If somebody asked to stop; what was answered is kept.
    """
    check_source(request.source)
    report = yield from ensure_report(ws, request.model, cancelled)
    policy = request.policy.for_model(report.info, request.match) or KVPolicy.uniform(
        FULL_PAIR, layers=len(report.info.layers), scheme=QuantScheme.per_token()
    )
    questions = questions_of(ws, request.model, request.source)
    asker = Asker(ws=ws, model=request.model, report=report, cancelled=cancelled, seed=request.source.seed)
    kind, total = request.source.kind, len(questions)
    yield Progress(stage=str(kind), done=0, total=total, message=f"{policy.name} and full precision")
    replies = []
    for both in asker.both(policy, questions):
        replies.append(both)
        right = sum(own.correct for own, _ in replies)
        text = f"{right} of {len(replies)} right with {policy.name}"
        reused = min(asker.reused // 2, len(replies))
        yield Progress(stage=str(kind), done=len(replies), total=total, reused=reused, message=text, event=both[0])
    score, full = scores(kind, replies, seed=request.source.seed)
    return TaskEvaluation(
        policy=policy,
        model=report.info,
        score=score,
        full=full,
        difference=task_difference(score, full, seed=request.source.seed),
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, report.info.layers),
        provenance=stamped(report),
        reused=asker.reused,
    )
