"""How far predictions moved: KL divergence, agreement, likelihood; and intervals over prompts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtuner_core.domain.metrics import Interval

_CHUNK_VALUES = 1 << 20
_RESAMPLES = 2000
_LARGEST_EXPONENT = 40.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Full-precision predictions to compare with.

    Attributes:
        logits: ``[N, V]`` in the model's dtype; log-probabilities if they are float32.
        best: ``[N]``, most likely token.
        labels: ``[N]``, the text's next token, or -1.
    """

    logits: Tensor
    best: Tensor
    labels: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Reference":
        """Keep ``logits`` ``[N, V]``; ``labels`` ``[N]`` are the text's next tokens, or -1."""
        kept = logits.log_softmax(-1) if logits.dtype == torch.float32 else logits.clone()
        return cls(logits=kept, best=logits.argmax(-1), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Divergence:
    """Change of every scored prediction.

    Attributes:
        kl: ``[N]``, KL(full || quantised) in nats.
        agrees: ``[N]``, whether the most likely token stayed.
        nll_change: ``[N]``, change of the text's negative log-likelihood in nats, NaN without label.
    """

    kl: np.ndarray
    agrees: np.ndarray
    nll_change: np.ndarray


def divergence(reference: Reference, logits: Tensor) -> Divergence:
    """Compare ``logits`` ``[N, V]`` with the reference.

    KL is summed as ``p (exp(-d) - 1 + d)`` with ``d = log p - log q``: the same sum as that of
    ``p d``, but every term is positive and of second order, so that float32 keeps small ones exact.

    Args:
        reference: Full-precision predictions.
        logits: Those that read the quantised history.
    """
    rows = max(1, _CHUNK_VALUES // logits.shape[-1]) if logits.device.type == "cpu" else 256
    kl, agrees, change = [], [], []
    for start in range(0, logits.shape[0], rows):
        part = slice(start, start + rows)
        full = reference.logits[part]
        log_p = full if full.dtype == torch.float32 else full.float().log_softmax(-1)
        quantised = logits[part]
        best = reference.best[part, None]
        agrees.append(quantised.gather(-1, best).squeeze(-1) >= quantised.amax(-1))
        log_q = quantised.float().log_softmax(-1)
        labels = reference.labels[part]
        index = labels.clamp(min=0)[:, None]
        moved = (log_p.gather(-1, index) - log_q.gather(-1, index)).squeeze(-1)
        change.append(torch.where(labels < 0, torch.nan, moved))
        kl.append(_kl(log_p, log_q))
    return Divergence(
        kl=torch.cat(kl).double().cpu().numpy(),
        agrees=torch.cat(agrees).cpu().numpy(),
        nll_change=torch.cat(change).double().cpu().numpy(),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    difference = log_p - log_q
    p = log_p.exp()
    # Beyond this exp overflows; such predictions are so far apart that the plain sum is exact enough.
    if bool(difference.amin() < -_LARGEST_EXPONENT):
        return difference.mul_(p).sum(-1).clamp_(min=0)
    return torch.expm1(-difference).add_(difference).mul_(p).sum(-1)


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
    chosen = np.random.default_rng(seed).integers(0, len(means), size=(_RESAMPLES, len(means)))
    resampled = (means[chosen] * tokens[chosen]).sum(1) / tokens[chosen].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))
