"""A quantisation scheme plus the bits of every layer."""

from collections.abc import Iterable
from dataclasses import dataclass

from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import PolicyError

MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPrecision:
    """The bits of one layer: one pair, or one pair per KV head.

    Attributes:
        pair: The layer's pair; ignored where ``heads`` is given.
        heads: One pair per KV head, or empty where all heads share ``pair``.
    """

    pair: PrecisionPair = FULL_PAIR
    heads: tuple[PrecisionPair, ...] = ()

    @property
    def pairs(self) -> tuple[PrecisionPair, ...]:
        """The pairs of the heads, or the one pair that they share."""
        return self.heads or (self.pair,)

    @property
    def nominal_bits(self) -> float:
        """Mean bits over keys, values and heads."""
        return sum(pair.nominal_bits for pair in self.pairs) / len(self.pairs)

    @property
    def name(self) -> str:
        """``K8V4``, or ``[K8V4 K4V2]`` for bits per head."""
        return self.pair.name if not self.heads else "[" + " ".join(pair.name for pair in self.heads) + "]"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPolicy:
    """How every layer's keys and values are stored.

    Attributes:
        scheme: Grouping and rounding, the same for all layers.
        layers: One entry per layer that keeps a cache, first layer first.
    """

    scheme: QuantScheme
    layers: tuple[LayerPrecision, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise PolicyError(f"A policy has 1 to {MAX_LAYERS} layers; got {len(self.layers)}.")

    @classmethod
    def uniform(cls, pair: PrecisionPair | str, *, layers: int, scheme: QuantScheme) -> "KVPolicy":
        """The same pair, or its name such as ``K4V2``, in each of ``layers`` layers."""
        value = PrecisionPair.parse(pair) if isinstance(pair, str) else pair
        return cls(scheme=scheme, layers=(LayerPrecision(pair=value),) * layers)

    @classmethod
    def from_pairs(cls, pairs: Iterable[PrecisionPair], *, scheme: QuantScheme) -> "KVPolicy":
        """One pair per layer, first layer first."""
        return cls(scheme=scheme, layers=tuple(LayerPrecision(pair=pair) for pair in pairs))

    @property
    def nominal_bits(self) -> float:
        """Unweighted mean of the layers' bits, without scales, offsets and windows."""
        return sum(layer.nominal_bits for layer in self.layers) / len(self.layers)

    @property
    def is_full(self) -> bool:
        """Whether nothing is quantised."""
        return all(pair.is_full for layer in self.layers for pair in layer.pairs)

    @property
    def by_layers(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What to sort policies by so that those that agree on their first layers lie together.

        Scoring one after the other does the layers on which they agree only once.
        """
        return tuple(tuple((pair.key_bits, pair.value_bits) for pair in layer.pairs) for layer in self.layers)

    @property
    def has_heads(self) -> bool:
        """Whether a layer has bits per head."""
        return any(layer.heads for layer in self.layers)

    @property
    def uniform_pair(self) -> PrecisionPair | None:
        """The one pair of every layer and head, or ``None`` where they differ."""
        pairs = {pair for layer in self.layers for pair in layer.pairs}
        return pairs.pop() if len(pairs) == 1 else None

    @property
    def name(self) -> str:
        """The uniform pair's name, or the nominal bits such as ``mixed 3.42 bits``."""
        pair = self.uniform_pair
        return pair.name if pair else f"mixed {self.nominal_bits:.2f} bits"
