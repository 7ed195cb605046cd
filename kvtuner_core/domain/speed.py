"""Speed as it was measured on a GPU: decode attention and whole decode steps, pair by pair."""

from dataclasses import dataclass

from kvtuner_core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOrigin:
    """Where and how a table of speeds was measured.

    Attributes:
        device: Name of the GPU, such as ``NVIDIA H200``.
        versions: Name and version of each library that counts.
        date: Day of the measurement, ISO 8601.
        command: What prints the table again on such a GPU.
        copy_gb_per_s: Device-to-device copy of the same run, bytes read and written, GB/s.
        note: What a reader of the table must know beside it, in sentences.
    """

    device: str
    versions: tuple[tuple[str, str], ...]
    date: str
    command: str
    copy_gb_per_s: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """One pair, scheme and shape.

    Attributes:
        pair: Name of the pair, such as ``K4V2``.
        scheme: How keys and values were grouped.
        batch: Sequences.
        length: Tokens of each.
        ms: Milliseconds from the packed cache.
        full_ms: Milliseconds in full precision (bfloat16, the fastest attention) in the same run.
        speedup: ``full_ms / ms``.
        ceiling: Speed-up that the bytes to be read would allow.
    """

    pair: str
    scheme: str
    batch: int
    length: int
    ms: float
    full_ms: float
    speedup: float
    ceiling: float

    def __post_init__(self) -> None:
        if min(self.batch, self.length, self.ms, self.full_ms, self.speedup, self.ceiling) <= 0:
            raise InputError(f"A measured speed is made of positive numbers; got {self!r}. Measure it again.")

    @property
    def shape(self) -> str:
        """Batch and length, such as ``8 x 32k``."""
        return f"{self.batch} x {self.length // 1024}k"

    @property
    def of_ceiling(self) -> float:
        """Share of the speed-up that the bytes would allow."""
        return self.speedup / self.ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedTable:
    """Rows of one run.

    Attributes:
        origin: Where they come from.
        rows: Pair by pair, scheme by scheme, shape by shape.
    """

    origin: SpeedOrigin
    rows: tuple[SpeedRow, ...]

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that were measured, in the order of the rows."""
        return tuple(dict.fromkeys(row.scheme for row in self.rows))

    def of_scheme(self, scheme: str) -> tuple[SpeedRow, ...]:
        """The rows of one scheme, short and few sequences first."""
        rows = (row for row in self.rows if row.scheme == scheme)
        return tuple(sorted(rows, key=lambda row: (row.batch * row.length, row.batch)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestBatch:
    """The largest batch that fitted on the GPU.

    Attributes:
        pair: Name of the pair, or ``bf16``.
        length: Tokens of each sequence.
        batch: Sequences.
        tokens_per_second: Of all sequences together.
    """

    pair: str
    length: int
    batch: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStep:
    """One token of one sequence through a named cache.

    Attributes:
        cache: Whose cache, at how many bits, and how it is called.
        length: Tokens in it.
        ms: Milliseconds a token, at lengths of history that the process has met before.
        first_ms: At lengths that it has not, for which torch's attention makes plans first.
        requantise_ms: What the cache spends on quantising its history again, shared out to all tokens; not in ``ms``.
        eager_faster: How many times faster ours is by ``ms``, called from Python, too; ``None`` for ours itself.
        graph_faster: How many times faster ours is as a CUDA graph; likewise.
    """

    cache: str
    length: int
    ms: float
    first_ms: float
    requantise_ms: float = 0.0
    eager_faster: float | None = None
    graph_faster: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """All tables that ship.

    Attributes:
        step: A whole decode step.
        attention: The attention of one layer alone.
        largest: Largest batches.
        largest_origin: Where those come from.
        caches: transformers' own caches beside ours.
        caches_origin: Where those come from.
    """

    step: SpeedTable
    attention: SpeedTable
    largest: tuple[LargestBatch, ...]
    largest_origin: SpeedOrigin
    caches: tuple[CacheStep, ...]
    caches_origin: SpeedOrigin
