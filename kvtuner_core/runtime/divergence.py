"""How far predictions moved: KL divergence, agreement, likelihood; and intervals over prompts."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtuner_core.domain.metrics import Interval

_CHUNK_VALUES = 1 << 19
_CHUNK_VALUES_CUDA = 1 << 26
_ALIGNED_VALUES = 8
_RESAMPLES = 2000
_LARGEST_EXPONENT = 40.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Full-precision predictions to compare with.

    Attributes:
        logits: ``[N, V]``, log-probabilities where ``normalised``.
        best: ``[N]``, most likely token.
        labels: ``[N]``, the text's next token, or -1.
        normalised: Whether the logits are log-probabilities; 16-bit ones are kept as they came.
    """

    logits: Tensor
    best: Tensor
    labels: Tensor
    normalised: bool

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Reference":
        """Keep ``logits`` ``[N, V]``; ``labels`` ``[N]`` are the text's next tokens, or -1."""
        normalised = logits.dtype.itemsize >= 4
        kept = logits.clone()
        if normalised:
            for part in torch.split(kept, _rows(kept) if kept.is_cuda else 1):
                part.sub_(_log_sum_exp(part))
        return cls(logits=kept, best=logits.argmax(-1), labels=labels, normalised=normalised)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Divergence:
    """Change of every scored prediction.

    Attributes:
        kl: ``[N]``, KL(full || quantised) in nats.
        agrees: ``[N]``, whether the most likely token stayed.
        nll_change: ``[N]``, change of the text's negative log-likelihood in nats, NaN without label.
        right: ``[N]``, whether the most likely token is the text's next one; true without label.
    """

    kl: np.ndarray
    agrees: np.ndarray
    nll_change: np.ndarray
    right: np.ndarray

    @classmethod
    def none(cls, reference: Reference) -> "Divergence":
        """That of the reference from itself."""
        labels = reference.labels
        unlabelled = (labels < 0).cpu().numpy()
        return cls(
            kl=np.zeros(len(labels)),
            agrees=np.ones(len(labels), dtype=bool),
            nll_change=np.where(unlabelled, np.nan, 0.0),
            right=(reference.best == labels).cpu().numpy() | unlabelled,
        )


def divergence(reference: Reference, logits: Tensor) -> Divergence:
    """Compare ``logits`` ``[N, V]`` with the reference.

    KL is summed as ``p (exp(-d) - 1 + d)`` with ``d = log p - log q``: the same sum as that of
    ``p d``, but every term is positive and of second order, so that float32 keeps small ones exact.
    On a CPU d is moved to have the mean 0 under p instead, and KL is the ``log(1 + sum)`` of the same
    terms, which spares the sum of exponentials that would normalise q.

    Args:
        reference: Full-precision predictions.
        logits: Those that read the quantised history.
    """
    return divergences(reference, logits, 1)[0]


def divergences(reference: Reference, logits: Tensor, policies: int) -> list[Divergence]:
    """`divergence` of the first policies whose logits ``[copies * N, V]`` lie one behind the other.

    On a GPU several are compared at once, always equally many whatever ``policies`` is: sums over tensors
    of another shape are rounded in another way.
    """
    rows = len(reference.labels)
    copies = len(logits) // rows
    group = max(1, min(copies, _rows(logits) // rows)) if logits.is_cuda else 1
    each = logits.view(copies, rows, -1)
    # The last group overlaps the one before it rather than being smaller.
    starts = [min(start, copies - group) for start in range(0, policies, group)]
    found = [_moved(reference, each[start : start + group]) for start in starts]
    # One transfer: a GPU would else be waited for after each of them.
    columns = [torch.stack(column).double().cpu().numpy() for column in zip(*found, strict=True)]
    places = [(index // group, index) for index in range(policies)]
    return [_divergence(*(column[place, index - starts[place]] for column in columns)) for place, index in places]


def _divergence(kl: np.ndarray, agrees: np.ndarray, change: np.ndarray, right: np.ndarray) -> Divergence:
    return Divergence(kl=kl, agrees=agrees.astype(bool), nll_change=change, right=right.astype(bool))


def _rows(logits: Tensor) -> int:
    """Rows that are compared at once."""
    return max(1, (_CHUNK_VALUES if logits.device.type == "cpu" else _CHUNK_VALUES_CUDA) // logits.shape[-1])


def _moved(reference: Reference, logits: Tensor) -> tuple[Tensor, ...]:
    """The four changes of every prediction, each ``[policies, N]``, from logits ``[policies, N, V]``."""
    policies, count, vocabulary = logits.shape
    rows = max(1, _rows(logits) // policies)
    parts = [slice(start, start + rows) for start in range(0, count, rows)]
    # The processor's cache holds a chunk and these; new tensors for each step would cost more than the sums.
    exact = torch.promote_types(logits.dtype, torch.float32)
    length = policies * min(rows, count) * _stride(vocabulary, logits.device)
    scratch = torch.empty((2 if logits.is_cuda else 3, length), dtype=exact, device=logits.device)
    found = [_compare(reference, logits[:, part], part, scratch) for part in parts]
    return tuple(torch.cat(column, dim=1) for column in zip(*found, strict=True))


def _stride(vocabulary: int, device: torch.device) -> int:
    """Values from one row of scratch to the next: on a GPU every row begins at an aligned address.

    There the order in which a row is summed depends on its alignment, and so would a score on its policy's place.
    """
    return vocabulary if device.type == "cpu" else -(-vocabulary // _ALIGNED_VALUES) * _ALIGNED_VALUES


def _rows_of(scratch: Tensor, like: Tensor) -> Tensor:
    """Scratch of the shape of ``like`` ``[policies, rows, V]``."""
    policies, rows, vocabulary = like.shape
    stride = _stride(vocabulary, like.device)
    return scratch[: policies * rows * stride].view(policies, rows, stride)[..., :vocabulary]


def _compare(reference: Reference, logits: Tensor, part: slice, scratch: Tensor) -> tuple[Tensor, ...]:
    """KL, agreement, change of the label's likelihood, and whether the label is likeliest, of some rows."""
    log_p = reference.logits[part]
    if not reference.normalised:
        log_p = log_p.to(scratch.dtype)
        log_p = log_p - _log_sum_exp(log_p)
    labels = reference.labels[part, None]
    index = labels.clamp(min=0)
    wanted = torch.cat([reference.best[part, None], index], dim=-1).expand(len(logits), -1, -1)
    highest = logits.amax(-1, keepdim=True)
    best, labelled = torch.split(logits.gather(-1, wanted), 1, dim=-1)
    agrees = best >= highest
    right = (labelled >= highest) | (labels < 0)
    kl, log_sum = (_summed if logits.is_cuda else _centred)(log_p, logits, [_rows_of(one, logits) for one in scratch])
    change = log_p.gather(-1, index) - (labelled - log_sum)
    return kl, agrees.squeeze(-1), torch.where(labels < 0, torch.nan, change).squeeze(-1), right.squeeze(-1)


def _log_sum_exp(logits: Tensor, *, scratch: Tensor | None = None) -> Tensor:
    """Over the last dimension, which is kept; torch's own loses digits over large vocabularies."""
    highest = logits.amax(-1, keepdim=True)
    moved = torch.sub(logits, highest, out=scratch)
    return moved.exp_().sum(-1, keepdim=True).log_().add_(highest)


def _centred(log_p: Tensor, logits: Tensor, scratch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """KL ``[policies, rows]``, and the log of each row's sum of exponentials ``[policies, rows, 1]``.

    With x the difference of logits and log p, less its mean under p, both are log(sum of p exp(x)), but for that mean.
    """
    moved, weights, terms = scratch
    torch.exp(log_p.expand_as(logits), out=weights)
    torch.sub(logits, log_p, out=moved)
    # Their sum is not quite 1 in float32, which the mean of large numbers would show.
    mean = torch.linalg.vecdot(weights, moved).div_(weights.sum(-1))[..., None]
    highest = moved.sub_(mean).amax(-1, keepdim=True)
    kl = torch.expm1(moved, out=terms).sub_(moved).mul_(weights).sum(-1).clamp_(min=0).log1p_()
    log_sum = mean + kl[..., None]
    far = ~(highest <= _LARGEST_EXPONENT)
    if bool(far.any()):
        # Beyond this exp overflows, and p may be 0 where q is not; so far apart the plain difference is exact enough.
        log_sum = torch.where(far, _log_sum_exp(logits, scratch=terms), log_sum)
        kl = torch.where(far[..., 0], (log_sum - mean)[..., 0].clamp_(min=0), kl)
    return kl, log_sum


def _summed(log_p: Tensor, logits: Tensor, scratch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`_centred` that chooses row by row on a GPU, which is not asked for an answer in between."""
    first, second = scratch[:2]
    log_sum = _log_sum_exp(logits, scratch=second)
    difference = torch.sub(log_p, logits, out=first).add_(log_sum)
    far = difference.amin(-1) < -_LARGEST_EXPONENT
    weights = log_p.exp()
    plain = torch.mul(weights, difference, out=second).sum(-1).clamp_(min=0)
    terms = torch.neg(difference, out=second).expm1_().add_(difference).mul_(weights)
    return torch.where(far, plain, terms.sum(-1)), log_sum


def bootstrap(means: np.ndarray, tokens: np.ndarray, *, seed: int) -> Interval:
    """Token-weighted mean with a 95% interval from 2,000 resamples of prompts.

    Args:
        means: Mean of each prompt, ``[prompts]``.
        tokens: Scored tokens of each prompt, ``[prompts]``.
        seed: Seed of the resampling.

    Returns:
        The interval; of a single prompt its ends are the mean.
    """
    mean = float(np.average(means, weights=tokens))
    if len(means) == 1:
        return Interval(mean=mean, low=mean, high=mean)
    chosen = resamples(len(means), _RESAMPLES, seed=seed)
    resampled = (means * tokens)[chosen].sum(1) / tokens[chosen].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))


@functools.lru_cache(maxsize=8)
def resamples(prompts: int, count: int, *, seed: int) -> np.ndarray:
    """``[count, prompts]``, the prompts that each resample draws; all policies share them, so they are kept."""
    drawn = np.random.default_rng(seed).integers(0, prompts, size=(count, prompts))
    drawn.setflags(write=False)
    return drawn
