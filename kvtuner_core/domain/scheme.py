"""How keys and values are grouped and rounded."""

from dataclasses import dataclass
from enum import StrEnum

from kvtuner_core.errors import SchemeError

MAX_WINDOW = 1_048_576


class Granularity(StrEnum):
    """What one scale covers.

    ``TOKEN``: `group_size` neighbouring values of one token of one head.
    ``CHANNEL``: one channel of one head over `group_size` consecutive tokens.
    """

    TOKEN = "token"
    CHANNEL = "channel"


class ScaleDtype(StrEnum):
    """Floating-point type in which scales and offsets are stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def bytes(self) -> int:
        """Bytes of one scale or offset."""
        return 2 if self is ScaleDtype.FLOAT16 else 4


class PrefillMode(StrEnum):
    """What the tokens of a prompt attend to while the prompt is read.

    ``FULL``: the prompt's own unquantised keys and values (the default everywhere else, too).
    ``QUANTISED``: the keys and values as they have just been stored.
    """

    FULL = "full"
    QUANTISED = "quantised"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantScheme:
    """Granularity of keys and of values, group size, symmetry, residual window and sinks.

    Attributes:
        key_granularity: What one key scale covers.
        value_granularity: What one value scale covers.
        group_size: Values that share a scale. ``None`` means all of head_dim, which only
            per-token granularity knows. Along head_dim a group never spans two tokens, so a
            group size above head_dim means head_dim; below, it must divide head_dim.
        symmetric: Whether the offset is left out (codes centred on zero).
        residual_length: Newest tokens kept in full precision. Where a side is grouped per
            channel only whole groups leave the window, so it holds up to
            ``residual_length + group_size - 1`` tokens.
        sink_length: First tokens kept in full precision (not in sliding-window layers, which
            forget them).
        scale_dtype: Storage type of scales and offsets.
    """

    key_granularity: Granularity
    value_granularity: Granularity
    group_size: int | None = None
    symmetric: bool = False
    residual_length: int = 0
    sink_length: int = 0
    scale_dtype: ScaleDtype = ScaleDtype.FLOAT16

    def __post_init__(self) -> None:
        for name in ("residual_length", "sink_length"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= MAX_WINDOW:
                raise SchemeError(f"{name} must be a number of tokens from 0 to {MAX_WINDOW}; got {value!r}.")
        if self.group_size is None:
            if self.has_channel_groups:
                raise SchemeError("group_size must be given where a side is grouped per channel; got none. Use 32.")
        elif type(self.group_size) is not int or not 2 <= self.group_size <= 4096:
            raise SchemeError(f"group_size must be a whole number from 2 to 4096; got {self.group_size!r}. Use 32.")

    @classmethod
    def per_token(
        cls,
        *,
        group_size: int | None = None,
        residual_length: int = 0,
        symmetric: bool = False,
        sink_length: int = 0,
    ) -> "QuantScheme":
        """KVTuner's per-token scheme: one group per token and head, no residual window."""
        return cls(
            key_granularity=Granularity.TOKEN,
            value_granularity=Granularity.TOKEN,
            group_size=group_size,
            symmetric=symmetric,
            residual_length=residual_length,
            sink_length=sink_length,
        )

    @classmethod
    def kivi(
        cls,
        *,
        group_size: int = 32,
        residual_length: int = 32,
        symmetric: bool = False,
        sink_length: int = 0,
    ) -> "QuantScheme":
        """KIVI (arXiv 2402.02750): keys per channel, values per token, groups and window of 32."""
        return cls(
            key_granularity=Granularity.CHANNEL,
            value_granularity=Granularity.TOKEN,
            group_size=group_size,
            symmetric=symmetric,
            residual_length=residual_length,
            sink_length=sink_length,
        )

    @property
    def has_channel_groups(self) -> bool:
        """Whether keys or values are grouped per channel."""
        return Granularity.CHANNEL in (self.key_granularity, self.value_granularity)

    @property
    def flush_tokens(self) -> int:
        """Tokens that leave the residual window together: a whole group per channel, else one."""
        return (self.group_size or 1) if self.has_channel_groups else 1

    @property
    def name(self) -> str:
        """``per-token``, ``kivi``, or ``custom`` for any other combination of granularities."""
        sides = (self.key_granularity, self.value_granularity)
        if sides == (Granularity.TOKEN, Granularity.TOKEN):
            return "per-token"
        return "kivi" if sides == (Granularity.CHANNEL, Granularity.TOKEN) else "custom"

    @property
    def label(self) -> str:
        """One readable line, such as ``kivi, groups of 32, 32 newest tokens in full precision``."""
        parts = [self.name, f"groups of {self.group_size or 'head_dim'}"]
        if self.symmetric:
            parts.append("symmetric")
        if self.residual_length:
            parts.append(f"{self.residual_length} newest tokens in full precision")
        if self.sink_length:
            parts.append(f"{self.sink_length} first tokens in full precision")
        return ", ".join(parts)

    def token_group(self, head_dim: int) -> int:
        """Values per group along a head of ``head_dim`` values.

        Raises:
            SchemeError: If the group size does not divide head_dim.
        """
        if self.group_size is None or self.group_size >= head_dim:
            return head_dim
        if head_dim % self.group_size:
            fits = ", ".join(str(n) for n in range(2, head_dim + 1) if head_dim % n == 0) or str(head_dim)
            raise SchemeError(
                f"group_size must divide head_dim ({head_dim}); got {self.group_size}. Use one of {fits}."
            )
        return self.group_size
