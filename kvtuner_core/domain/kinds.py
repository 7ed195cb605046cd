"""How one policy does on kinds of text that it was not tuned on."""

from dataclasses import dataclass

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.prompts import PromptKind
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.questions import TaskDifference, TaskKind, TaskScore

KIND_TASKS = (
    (PromptKind.PROSE, TaskKind.MULTIPLE_CHOICE),
    (PromptKind.MATHS, TaskKind.EXACT_MATCH),
    (PromptKind.CHAT, None),
    (PromptKind.RETRIEVAL, TaskKind.RECALL),
)
"""Every kind with the task whose accuracy stands beside its KL, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindsSpec:
    """What is measured; as a run's request it names all that changes the numbers.

    Attributes:
        model: Which model.
        policy: The policy.
        prefix_tokens: Tokens of each text that are read first and quantised.
        suffix_tokens: Tokens of each text that are scored, where it has so many.
        items: Questions of each task; 0 asks none.
        exact_match_items: Questions to be answered by generating whole solutions, which takes long.
        seed: Seed of the intervals and of the recall questions.
    """

    model: ModelSpec
    policy: KVPolicy
    prefix_tokens: int = 512
    suffix_tokens: int = 32
    items: int = 25
    exact_match_items: int = 0
    seed: int = 0

    def items_of(self, task: TaskKind | None) -> int:
        """Questions of one task."""
        if task is None:
            return 0
        return self.exact_match_items if task is TaskKind.EXACT_MATCH else self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """What was measured on one kind.

    Attributes:
        kind: The kind.
        prompts: Name of the prompt set.
        prompts_digest: `PromptSet.digest` of it.
        score: The policy by teacher forcing.
        task: The policy on the kind's task, or ``None``.
        full: Full precision on the same questions, or ``None``.
        difference: The policy minus full precision, or ``None``.
    """

    kind: PromptKind
    prompts: str
    prompts_digest: str
    score: PolicyScore
    task: TaskScore | None = None
    full: TaskScore | None = None
    difference: TaskDifference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindsResult:
    """One policy on every kind.

    Attributes:
        run: Id of the stored run.
        spec: What was asked.
        model: The model, fingerprint included.
        rows: One per kind.
        effective_bits: Bits per scalar with scales, offsets and padding.
        provenance: Device, dtype, versions, time.
        seconds: Wall time; little where measurements were reused.
    """

    run: str
    spec: KindsSpec
    model: ModelInfo
    rows: tuple[KindRow, ...]
    effective_bits: float
    provenance: Provenance
    seconds: float
