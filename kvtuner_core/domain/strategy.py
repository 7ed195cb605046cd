"""How a search chooses the policies it scores, and what it may not choose."""

import math
from dataclasses import dataclass
from enum import StrEnum

from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.errors import InputError


class SearchStrategy(StrEnum):
    """A named solver.

    Attributes:
        AUTO: The additive front, refitted to true evaluations and solved again while it moves; what
            evaluations are left explore beside it. Every layer chooses alone among all swept pairs.
        NSGA2: NSGA-II over the layer groups, as KVTuner is published.
        NSGA2_WARM: The same, its first generation spread along the additive front of the groups.
        NSGA2_LAYERS: NSGA-II in which every layer chooses alone, without a warm start.
        MOEAD: MOEA/D over the layer groups, as KVTuner's paper says.
        ADDITIVE: The additive optimum over the layers, spread along its front, never refitted.
        GREEDY: From the widest policy, always the step that costs least predicted KL per byte saved.
        KVMIX: KVmix's allocation, K3V4 for the most sensitive layers and K2V2 for the rest, at
            several shares of layers, 20% (the published one) first.
        RANDOM: Random policies of all widths.
        UNIFORM: The same pair in every layer.
        PROTECTED: First and last layers wider than the rest.
    """

    AUTO = "auto"
    NSGA2 = "nsga2"
    NSGA2_WARM = "nsga2-warm"
    NSGA2_LAYERS = "nsga2-layers"
    MOEAD = "moead"
    ADDITIVE = "additive"
    GREEDY = "greedy"
    KVMIX = "kvmix"
    RANDOM = "random"
    UNIFORM = "uniform"
    PROTECTED = "protected"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """One layer under one pair, written ``3:K8V4``.

    Attributes:
        layer: Index among the layers that keep a cache, from 0.
        pair: The pair.
    """

    layer: int
    pair: PrecisionPair

    @classmethod
    def parse(cls, text: str) -> "LayerPair":
        """Read ``3:K8V4``.

        Raises:
            InputError: If ``text`` is not written so.
            PolicyError: If the pair is not one.
        """
        layer, _, pair = text.partition(":")
        if not layer.strip().isdecimal() or not pair:
            raise InputError(f"A layer and its pair are written like 3:K8V4; got {text!r}.")
        return cls(layer=int(layer), pair=PrecisionPair.parse(pair))

    def __str__(self) -> str:
        return f"{self.layer}:{self.pair.name}"


GIB = 2**30
"""Bytes of one GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBound:
    """Most bytes of a whole cache, windows and sinks included, as `domain.memory.cache_bytes` counts them.

    Attributes:
        max_gib: Most GiB (2^30 bytes).
        batch: Sequences that are served together.
        context: Tokens of each of them.
    """

    max_gib: float
    batch: int = 1
    context: int = 8192

    def __post_init__(self) -> None:
        if type(self.max_gib) not in (int, float) or not (0 < self.max_gib < 2**40):
            raise InputError(f"max_gib must be a number of GiB above 0; got {self.max_gib!r}.")
        for name, most in (("batch", 2**20), ("context", 2**30)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InputError(f"{name} must be a whole number from 1 to {most}; got {value!r}.")

    @property
    def max_bytes(self) -> int:
        """Most bytes."""
        return math.floor(self.max_gib * GIB)

    @property
    def at(self) -> str:
        """Where it holds, such as ``batch 8 x 32,768 tokens``."""
        return f"batch {self.batch} x {self.context:,} tokens"

    @property
    def label(self) -> str:
        """One readable line, such as ``at most 2 GiB at batch 8 x 32,768 tokens``."""
        return f"at most {self.max_gib:g} GiB at {self.at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a searched policy must keep to, beside its bits.

    Attributes:
        max_pairs: Most different pairs in one policy, or ``None``; engines often take two or three.
        forbidden: Pairs that a layer may not have.
        pinned: Layers whose pair is given.
        memory: Most bytes of the cache at a batch and context, or ``None``.
    """

    max_pairs: int | None = None
    forbidden: tuple[LayerPair, ...] = ()
    pinned: tuple[LayerPair, ...] = ()
    memory: MemoryBound | None = None
