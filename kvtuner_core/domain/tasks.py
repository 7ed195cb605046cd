"""Model work as plain values: what a worker is asked, and what it answers.

Tasks and answers cross process boundaries, so none of them holds a tensor.
"""

from dataclasses import dataclass

from kvtuner_core.domain.metrics import ErrorProfile, PolicyScore
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.prompts import PromptSet
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.questions import Question, Reply
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.domain.scores import ErrorScores, WeightScores
from kvtuner_core.domain.stopping import PartialScore, Stopping

PROFILED_TOKENS = 600
"""Suffix tokens, over all prompts and pairs, of a CPU's pass that measures pairs together: wider ones gain nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """One session of the worker: a model, prompts, a scheme, and how prompts are cut.

    Attributes:
        model: Which model.
        prompts: The texts, already limited.
        scheme: Grouping and rounding.
        prefix_tokens: Tokens of each text that are read first and quantised; a shorter text
            gives what it has beyond its suffix.
        suffix_tokens: Tokens that are scored while they read the quantised history.
        seed: Seed of the bootstrap.
    """

    model: ModelSpec
    prompts: PromptSet
    scheme: QuantScheme
    prefix_tokens: int
    suffix_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectTask:
    """Load the model; answer a `ModelReport`."""

    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What a worker knows after loading a model.

    Attributes:
        info: Identity and geometry, fingerprint included.
        provenance: Device, dtype and versions of this worker.
        free_bytes: Free memory of the device in bytes.
        total_bytes: All memory of the device in bytes.
        together: Measurements that are worth asking for in one task: many on a GPU, which has room for
            them in one pass, else 1 (pairs of a layer, of few tokens, are still measured together).
    """

    info: ModelInfo
    provenance: Provenance
    free_bytes: int
    total_bytes: int
    together: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTask:
    """Measure one layer under several pairs; answer a tuple of `ErrorProfile`, in the pairs' order."""

    evaluation: EvaluationSpec
    layer: int
    pairs: tuple[PrecisionPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorScoresTask:
    """Multiply gradients with the errors of every layer under some pairs; answer `ErrorScores`."""

    evaluation: EvaluationSpec
    pairs: tuple[PrecisionPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScoresTask:
    """Measure the norms of every layer's projections and of their gradients; answer `WeightScores`."""

    evaluation: EvaluationSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """Score one policy; answer a `PolicyScore`."""

    evaluation: EvaluationSpec
    policy: KVPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreManyTask:
    """Score several policies, each as it would be alone; answer a tuple of scores, in their order.

    Attributes:
        evaluation: The session.
        policies: What is scored; the answer has a `PolicyScore` for each.
        stopping: When a `PartialScore` is enough, or ``None``: never.
    """

    evaluation: EvaluationSpec
    policies: tuple[KVPolicy, ...]
    stopping: Stopping | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateTask:
    """Generate from the really quantised cache; emit a `TokenEvent` a token, answer a `Generation`.

    Attributes:
        model: Which model.
        policy: How the cache is stored, or ``None`` for the model's own full-precision cache.
        prompt: The user's text.
        max_new_tokens: Most tokens to generate.
        chat: Whether to wrap the prompt in the model's chat template where it has one.
        temperature: 0 for greedy, above for sampling.
        seed: Seed of the sampling.
        prefill: What prompt tokens attend to.
    """

    model: ModelSpec
    policy: KVPolicy | None
    prompt: str
    max_new_tokens: int
    chat: bool = True
    temperature: float = 0.0
    seed: int = 0
    prefill: PrefillMode = PrefillMode.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class AskTask:
    """Ask one question through the packed cache; answer a `Reply`.

    Attributes:
        model: Which model.
        policy: How the cache is stored, or ``None`` for the model's own full-precision cache.
        question: What is asked.
    """

    model: ModelSpec
    policy: KVPolicy | None
    question: Question


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTask:
    """Count the tokens of texts, without special ones; answer `TokenCounts`."""

    model: ModelSpec
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of each text, in order."""

    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token: its id and the text it adds (may be empty inside a character)."""

    token: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished generation.

    Attributes:
        text: The generated text.
        token_ids: Generated token ids, the end token left out.
        token_texts: Text of each token; joined they are ``text``.
        prompt_tokens: Tokens of the prompt.
        cache_bytes: Measured bytes of the cache's tensors at the end.
        full_precision_bytes: Bytes of an unquantised cache of the same tokens in the model's dtype.
        tokens_per_second: Decoding speed, the prompt's reading left out.
        prefill_seconds: Time to read the prompt.
        device: Readable device name.
        decoding: How tokens were decoded: which kernels, captured as a CUDA graph or not, and if not why.
    """

    text: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    prompt_tokens: int
    cache_bytes: int
    full_precision_bytes: int
    tokens_per_second: float
    prefill_seconds: float
    device: str
    decoding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A process that runs tasks.

    Attributes:
        name: Its name among the workers.
        device: Readable device, or where it runs.
        pid: Its process id, or ``None`` where it is on another machine.
    """

    name: str
    device: str
    pid: int | None = None


MeasureTask = ProfileTask | ErrorScoresTask | WeightScoresTask | ScoreTask | ScoreManyTask
"""Work whose answer does not depend on what else is measured, nor on which worker does it."""

Task = InspectTask | GenerateTask | AskTask | CountTask | MeasureTask
Scores = ErrorScores | WeightScores | PolicyScore | tuple[PolicyScore | PartialScore, ...]
Answer = ModelReport | tuple[ErrorProfile, ...] | Scores | Generation | Reply | TokenCounts


def model_of(task: Task) -> ModelSpec:
    """The model that a task needs."""
    return task.evaluation.model if isinstance(task, MeasureTask) else task.model
