"""How keys and values are grouped and rounded."""

from dataclasses import dataclass
from enum import StrEnum

from kvtuner_core.errors import SchemeError

MAX_WINDOW = 1_048_576

MAX_SHARE = 0.5
"""Largest share of the context that a window may keep in full precision."""

_SHARE_UNIT = 10_000
"""Shares are whole numbers of 1 / 10,000, so that windows are exact in whole numbers."""


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


class Rotation(StrEnum):
    """Which sides are turned by an orthonormal Hadamard transform before they are quantised.

    ``x' = H dequantised(quantised(H x))`` with ``H`` along head_dim, its own inverse; keys after RoPE.
    The transform spreads an outlier channel over all channels of a block, so that it widens the
    range of one per-token group less. The block is the largest power of two that divides head_dim.
    """

    NONE = "none"
    KEYS = "keys"
    KEYS_AND_VALUES = "keys-and-values"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantScheme:
    """Granularity of keys and of values, group size, symmetry, rotation, residual window and sinks.

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
        residual_share: Share of the context that is kept in full precision where that is more than
            ``residual_length``: the newest ``ceil(share x tokens)`` of the tokens that a layer sees.
            From 0 to 0.5, to four decimals (the window of KVmix, arXiv 2506.08018).
        rotation: Which sides are rotated before they are quantised; full-precision tokens never are.
    """

    key_granularity: Granularity
    value_granularity: Granularity
    group_size: int | None = None
    symmetric: bool = False
    residual_length: int = 0
    sink_length: int = 0
    scale_dtype: ScaleDtype = ScaleDtype.FLOAT16
    residual_share: float = 0.0
    rotation: Rotation = Rotation.NONE

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
        share = self.residual_share
        if type(share) not in (int, float) or not 0 <= share <= MAX_SHARE or round(share, 4) != share:
            raise SchemeError(
                f"residual_share must be a share of the context from 0 to {MAX_SHARE} with four decimals at most; "
                f"got {share!r}. Use 0.1."
            )

    @classmethod
    def per_token(
        cls,
        *,
        group_size: int | None = None,
        residual_length: int = 0,
        symmetric: bool = False,
        sink_length: int = 0,
        residual_share: float = 0.0,
        rotation: Rotation = Rotation.NONE,
    ) -> "QuantScheme":
        """KVTuner's per-token scheme: one group per token and head, no residual window."""
        return cls(
            key_granularity=Granularity.TOKEN,
            value_granularity=Granularity.TOKEN,
            group_size=group_size,
            symmetric=symmetric,
            residual_length=residual_length,
            sink_length=sink_length,
            residual_share=residual_share,
            rotation=rotation,
        )

    @classmethod
    def kivi(
        cls,
        *,
        group_size: int = 32,
        residual_length: int = 32,
        symmetric: bool = False,
        sink_length: int = 0,
        residual_share: float = 0.0,
        rotation: Rotation = Rotation.NONE,
    ) -> "QuantScheme":
        """KIVI (arXiv 2402.02750): keys per channel, values per token, groups and window of 32."""
        return cls(
            key_granularity=Granularity.CHANNEL,
            value_granularity=Granularity.TOKEN,
            group_size=group_size,
            symmetric=symmetric,
            residual_length=residual_length,
            sink_length=sink_length,
            residual_share=residual_share,
            rotation=rotation,
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
    def rotates_keys(self) -> bool:
        """Whether keys are rotated before they are quantised."""
        return self.rotation is not Rotation.NONE

    @property
    def rotates_values(self) -> bool:
        """Whether values are rotated before they are quantised."""
        return self.rotation is Rotation.KEYS_AND_VALUES

    @property
    def has_window(self) -> bool:
        """Whether newest tokens are kept in full precision."""
        return self.residual_length > 0 or self.residual_share > 0

    def window_tokens(self, tokens: int) -> int:
        """Newest tokens kept in full precision of ``tokens`` tokens that a layer sees; more only to fill a group."""
        units = round(self.residual_share * _SHARE_UNIT)
        return max(self.residual_length, -(-units * tokens // _SHARE_UNIT))

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
        if self.residual_share:
            parts.append(f"newest {100 * self.residual_share:g}% of the context in full precision")
        if self.sink_length:
            parts.append(f"{self.sink_length} first tokens in full precision")
        if self.rotation is not Rotation.NONE:
            parts.append(f"{self.rotation.value.replace('-', ' ')} rotated")
        return ", ".join(parts)

    def check_head(self, head_dim: int) -> None:
        """Raise `SchemeError` unless heads of ``head_dim`` values can be rotated where they have to be."""
        if self.rotation is not Rotation.NONE and head_dim % 2:
            raise SchemeError(f"rotation needs an even head_dim; this model's is {head_dim}. Use rotation none.")

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
