"""Gradients times measured errors: what the loss, and the KL, do when one layer is quantised.

The suffix runs once through the full-precision model, with every layer's laid-out keys and values
in the graph, so that gradients are taken of exactly the slots that scored queries read, through all
later layers. The errors are those of the bank's quantised slots, so one pass serves every pair.

First order: the change of the text's negative log-likelihood L is <dL/dK, K'-K> + <dL/dV, V'-V>.

Second order: KL(full || quantised) is 1/2 d'Fd, F the Fisher information of the predictions. With
logits z, probabilities p and independent standard normal n, the vector v = sqrt(p) n - p (sqrt(p) . n)
has the covariance diag(p) - pp', so the gradient g of z . v, summed over the suffix, has E[gg'] = F;
labels drawn from the model would have the same mean and heavier tails. (g . d)^2 of a whole layer
is unbiased, but one probe leaves it as uncertain as a squared normal number. Rounding errors of
different tokens and heads are nearly uncorrelated, so the squares are taken per token and head and
then summed: the same mean under that assumption, from a few probes.

Only the suffix pass is differentiated; the prefix enters as exact keys and values. Memory beside a
session's is one copy and one gradient of them, for as many prompts at a time as fit.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import FULL_BITS, PrecisionPair
from kvtuner_core.domain.scores import ErrorScores, PairScores
from kvtuner_core.runtime.attending import Mask, masked_attention, planless
from kvtuner_core.runtime.bank import Side
from kvtuner_core.runtime.interception import attention_implementation, intercepted
from kvtuner_core.runtime.provenance import device_memory
from kvtuner_core.runtime.replay import Banked, SuffixAttention
from kvtuner_core.runtime.session import Prepared, Session

ENOUGH_PROBES = 24
"""Prompts times probes that a Fisher estimate is a mean over, at least."""

_MEMORY_SHARE = 0.25
_KEPT_SHARE = 0.125
_LOGITS_COPIES = 6

Place = tuple[int, Side, int]
"""Layer, keys or values, and bits."""


def error_scores(session: Session, pairs: Sequence[PrecisionPair], *, seed: int = 0) -> ErrorScores:
    """First-order change of the loss and second-order KL of every layer under each pair.

    Args:
        session: The model, prompts and scheme.
        pairs: The pairs under test.
        seed: Seed of the probes; those of a prompt depend on it and the prompt's index alone.
    """
    probes = max(1, -(-ENOUGH_PROBES // len(session.prompts)))
    sums = _Sums(pairs)
    for prepared in session.prepared:
        for banked in prepared.banked:
            for rows in _row_groups(session, prepared, banked):
                _add(sums, session, _Rows(prepared, banked, rows), probes=probes, seed=seed)
    layers = range(len(session.layers))
    return ErrorScores(
        pairs=tuple(sums.scores(layer, pair, probes) for layer in layers for pair in pairs),
        probes=probes,
        gradient_seconds=sums.gradient_seconds,
        fisher_seconds=sums.fisher_seconds,
    )


@dataclass(slots=True, eq=False)
class _Sums:
    """What is summed over prompts, and the time it took."""

    pairs: Sequence[PrecisionPair]
    first: defaultdict[tuple[int, PrecisionPair], float] = field(default_factory=lambda: defaultdict(float))
    squares: defaultdict[Place, float] = field(default_factory=lambda: defaultdict(float))
    labels: int = 0
    tokens: int = 0
    gradient_seconds: float = 0.0
    fisher_seconds: float = 0.0

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths that leave an error."""
        widths = {bits for pair in self.pairs for bits in (pair.key_bits, pair.value_bits)}
        return tuple(sorted(widths - {FULL_BITS}))

    def add_first(self, products: dict[Place, Sequence[float]]) -> None:
        """Take in each row's inner product of gradient and error."""
        for layer in {place[0] for place in products}:
            for pair in self.pairs:
                keys = products.get((layer, Side.KEY, pair.key_bits), ())
                values = products.get((layer, Side.VALUE, pair.value_bits), ())
                both = itertools.zip_longest(keys, values, fillvalue=0.0)
                self.first[layer, pair] += sum(abs(key + value) for key, value in both)

    def scores(self, layer: int, pair: PrecisionPair, probes: int) -> PairScores:
        """The means per token."""
        squares = self.squares[layer, Side.KEY, pair.key_bits] + self.squares[layer, Side.VALUE, pair.value_bits]
        return PairScores(
            layer=layer,
            pair=pair,
            gradient_error=self.first[layer, pair] / max(1, self.labels),
            fisher_error=squares / (2 * probes * self.tokens),
        )


@dataclass(slots=True, eq=False)
class _Rows:
    """Some prompts of a part.

    Attributes:
        prepared: Their batch.
        banked: Their part.
        rows: Their rows within the part.
    """

    prepared: Prepared
    banked: Banked
    rows: slice

    @property
    def in_batch(self) -> slice:
        """Their rows within the batch."""
        first = self.banked.part.rows.start
        return slice(first + self.rows.start, first + self.rows.stop)

    @torch.inference_mode()
    def error(self, layer: int, side: Side, bits: tuple[int, ...], exact: Tensor) -> Tensor:
        """Quantised minus exact slots at each width, at least float32: ``[widths, R, H_kv, K, D]``."""
        captured = self.prepared.captured[layer]
        suffix = (captured.key if side is Side.KEY else captured.value)[self.banked.part.rows]
        wide = torch.promote_types(exact.dtype, torch.float32)
        found = []
        for width in bits:
            precision = LayerPrecision(pair=PrecisionPair(key_bits=width, value_bits=width))
            quantised = self.banked.bank.with_suffix(layer, side, precision, suffix)[self.rows]
            found.append(quantised.to(wide) - exact.to(wide))
        return torch.stack(found)


@dataclass(slots=True, eq=False)
class _Errors:
    """Rounding errors of every place of some rows, computed once for all backward passes where they fit.

    Attributes:
        rows: Whose.
        bits: The widths.
        keeps: Whether there is room for all.
    """

    rows: _Rows
    bits: tuple[int, ...]
    keeps: bool
    _kept: dict[tuple[int, Side], Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def products(self, layer: int, side: Side, exact: Tensor, gradient: Tensor) -> Tensor:
        """Gradient times error at each width, summed over a head's values: ``[widths, R, H_kv, K]``."""
        error = self._kept.get((layer, side))
        if error is None:
            error = self.rows.error(layer, side, self.bits, exact)
            if self.keeps:
                self._kept[layer, side] = error
        return torch.einsum("rhkd,wrhkd->wrhk", gradient.to(error.dtype), error)


def _scalars(session: Session, banked: Banked) -> int:
    """Laid-out keys and values of one prompt, over all layers."""
    geometry = enumerate(session.layers)
    return sum(
        layer.kv_heads * (layer.key_dim + layer.value_dim) * banked.bank.layout(index).slots
        for index, layer in geometry
    )


def _row_groups(session: Session, prepared: Prepared, banked: Banked) -> Iterator[slice]:
    """Rows of a part that fit into a share of the free memory together; at least one."""
    logits = _LOGITS_COPIES * 4 * prepared.batch.suffix_ids.shape[1] * session.loaded.info.vocabulary
    free, _ = device_memory(session.loaded.device)
    copies = 3 * _scalars(session, banked) * session.loaded.dtype.itemsize
    most = max(1, int(_MEMORY_SHARE * free) // (copies + logits))
    count = banked.part.rows.stop - banked.part.rows.start
    for start in range(0, count, most):
        yield slice(start, min(count, start + most))


def _errors(sums: _Sums, session: Session, rows: _Rows) -> _Errors:
    free, _ = device_memory(session.loaded.device)
    item = max(4, session.loaded.dtype.itemsize)
    count = rows.rows.stop - rows.rows.start
    needed = count * _scalars(session, rows.banked) * item * len(sums.bits)
    return _Errors(rows, sums.bits, keeps=needed <= _KEPT_SHARE * free)


def _add(sums: _Sums, session: Session, rows: _Rows, *, probes: int, seed: int) -> None:
    started = time.perf_counter()
    attention = _LaidOutAttention.of(session, rows)
    batch, chosen = rows.prepared.batch, rows.in_batch
    # What was made in inference mode cannot take part in a graph; copies can.
    ids, positions = batch.suffix_ids[chosen].clone(), batch.positions[chosen].clone()
    errors = _errors(sums, session, rows)
    with torch.enable_grad(), planless(rows.banked.bank.layout(0).slots):
        with intercepted(session.loaded.model, attention):
            logits = session.loaded.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        forward = time.perf_counter() - started
        labels = batch.labels.view(batch.suffix_ids.shape)[chosen].clone()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        sums.add_first(_by_place(errors, attention, loss, lambda products: products.sum((2, 3))))
        between = time.perf_counter()
        indices = [prompt.index for prompt in batch.prompts[chosen]]
        for probe in range(probes):
            vectors = _fisher_vectors(logits.detach(), indices, seed=seed, probe=probe)
            scalar = (logits * vectors).sum()
            for place, (square,) in _by_place(errors, attention, scalar, _summed_squares).items():
                sums.squares[place] += square
    sums.labels += int((labels >= 0).sum())
    sums.tokens += labels.numel()
    sums.gradient_seconds += between - started
    sums.fisher_seconds += forward + time.perf_counter() - between


def _summed_squares(products: Tensor) -> Tensor:
    return products.square().sum((1, 2, 3))[:, None]


def _by_place(
    errors: _Errors, attention: "_LaidOutAttention", scalar: Tensor, summed: Callable[[Tensor], Tensor]
) -> dict[Place, Sequence[float]]:
    """Of each place what ``summed`` makes ``[widths, n]`` of its products with the gradient of ``scalar``."""
    if not errors.bits:
        return {}
    laid = attention.laid_out
    gradients = torch.autograd.grad(scalar, list(laid.values()), retain_graph=True)
    found = [
        summed(errors.products(layer, side, exact.detach(), gradient))
        for ((layer, side), exact), gradient in zip(laid.items(), gradients, strict=True)
    ]
    # One transfer: a GPU would else be waited for at each place.
    numbers = torch.stack(found).tolist()
    return {
        (layer, side, bits): numbers[index][width]
        for index, (layer, side) in enumerate(laid)
        for width, bits in enumerate(errors.bits)
    }


def _fisher_vectors(logits: Tensor, indices: Sequence[int], *, seed: int, probe: int) -> Tensor:
    """Random vectors ``[R, S, V]`` whose covariance is the Fisher information of the logits."""
    probabilities = logits.softmax(-1)
    noise = torch.stack(
        [
            torch.randn(
                logits.shape[1:],
                generator=torch.Generator(device=logits.device).manual_seed((seed << 24) + (index << 8) + probe),
                dtype=logits.dtype,
                device=logits.device,
            )
            for index in indices
        ]
    )
    roots = probabilities.sqrt().mul_(noise)
    return roots.sub_(probabilities.mul_(roots.sum(-1, keepdim=True)))


@dataclass(slots=True, eq=False)
class _LaidOutAttention(SuffixAttention):
    """Full-precision attention whose laid-out keys and values are in the graph.

    Attributes:
        history: Rows of the part whose prefix is read.
        laid_out: Filled with each layer's slots, ``[R, H_kv, K, D]``.
    """

    history: slice = field(default_factory=lambda: slice(None))
    laid_out: dict[tuple[int, Side], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, rows: _Rows) -> "_LaidOutAttention":
        """For some prompts of a part."""
        return cls(
            [rows.banked],
            rows=rows.rows.stop - rows.rows.start,
            policies=(),
            copies=1,
            implementation=attention_implementation(session.loaded.model),
            history=rows.rows,
        )

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None = None, **own: Any
    ) -> tuple[Tensor, None]:
        """See `interception.Attention`."""
        own.setdefault("scaling", getattr(module, "scaling", None))
        layer = self._cached_layer(module, key)
        self.calls += 1
        keys, values = self._slots(layer, Side.KEY, key), self._slots(layer, Side.VALUE, value)
        # A mask that shares no slots keeps to an attention that has a gradient.
        mask = Mask(visible=self.banked[0].masks[layer].visible.clone(), shared=0)
        return masked_attention(module, query, keys, values, mask=mask, implementation=self.implementation, **own), None

    def _slots(self, layer: int, side: Side, suffix: Tensor) -> Tensor:
        found = self.laid_out.get((layer, side))
        if found is None:
            banked = self.banked[0]
            positions = torch.from_numpy(banked.bank.layout(layer).positions).to(suffix.device)
            prefix = banked.part.history[layer].side(side)[self.history].clone().to(suffix.device)
            found = torch.cat([prefix, suffix], dim=2).index_select(2, positions)
            if not found.requires_grad:
                found.requires_grad_()
            self.laid_out[layer, side] = found
        return found
