"""Ridge regression with a standard normal prior, in the space of evaluations.

The matrix of the evaluations' products is turned to its eigenvectors once. From them come the answer
to any noise, the errors of evaluations left out one at a time, and (by Woodbury's identity) the same
with a few more columns of the design.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

_ALONE = threading.RLock()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """In here NumPy's matrices, a few hundred numbers wide, are left to one thread: many wait longer than they work.

    OpenBLAS has one setting for the whole process, so that searches of one process are in here one after the
    other; with another library nothing is limited.
    """
    with _ALONE, _openblas().limit(limits=1):
        yield


@functools.cache
def _openblas() -> ThreadpoolController:
    """That of NumPy; torch has another library, whose threads may be at work."""
    return ThreadpoolController().select(internal_api="openblas")


class Ridge:
    """A design ``[n, columns]`` and its targets ``[n]``."""

    def __init__(self, design: Array, targets: Array) -> None:
        values, self._vectors = np.linalg.eigh(design @ design.T)
        self._values = np.maximum(values, 0.0)
        self._design = design
        self._targets = targets
        self._squares = self._vectors**2

    def chosen(self, extra: Array, noises: Sequence[float]) -> "Fit":
        """The fit, with more columns ``[n, more]``, whose noise leaves the smallest errors."""
        turned = self._vectors.T @ extra
        fits = [self._fit(extra, turned, noise) for noise in noises]
        return min(fits, key=lambda fit: fit.error)

    def _fit(self, extra: Array, turned: Array, noise: float) -> "Fit":
        inverse = 1.0 / (self._values + noise**2)
        pulled = self._vectors @ (inverse[:, None] * turned)
        inner = np.linalg.inv(np.eye(extra.shape[1]) + turned.T @ (inverse[:, None] * turned))
        fit = Fit(
            design=self._design,
            extra=extra,
            targets=self._targets,
            noise=noise,
            vectors=self._vectors,
            inverse=inverse,
            pulled=pulled,
            inner=inner,
        )
        own = self._squares @ inverse - ((pulled @ inner) * pulled).sum(axis=1)
        residual = fit.solve(self._targets) / own
        fit.error = math.sqrt(float((residual**2).mean()))
        return fit


@dataclass(slots=True, kw_only=True, eq=False)
class Fit:
    """A design with its noise.

    Attributes:
        design: Columns ``[n, columns]``.
        extra: More columns ``[n, more]``.
        targets: What is explained ``[n]``.
        noise: Standard deviation of the targets.
        vectors: Eigenvectors of the products of ``design``'s rows ``[n, n]``.
        inverse: Of its eigenvalues and the variance ``[n]``.
        pulled: ``extra`` under the inverse of products and variance ``[n, more]``.
        inner: Woodbury's inner inverse ``[more, more]``.
        error: Root mean square error of evaluations left out, one at a time.
    """

    design: Array
    extra: Array
    targets: Array
    noise: float
    vectors: Array
    inverse: Array
    pulled: Array
    inner: Array
    error: float = math.inf

    def solve(self, right: Array) -> Array:
        """``right`` under the inverse of the products of all columns and the variance, ``[n]``."""
        alone = self.vectors @ (self.inverse * (self.vectors.T @ right))
        answer: Array = alone - self.pulled @ (self.inner @ (self.pulled.T @ right))
        return answer

    def mean(self) -> Array:
        """The posterior's mean: a weight of each column, those of ``extra`` last."""
        return self._weights(self.targets)

    def drawn(self, rng: np.random.Generator) -> Array:
        """A draw from the posterior."""
        prior = rng.standard_normal(self.design.shape[1] + self.extra.shape[1])
        wrong = self.noise * rng.standard_normal(len(self.targets))
        own, more = prior[: self.design.shape[1]], prior[self.design.shape[1] :]
        weights: Array = prior + self._weights(self.targets - self.design @ own - self.extra @ more - wrong)
        return weights

    def _weights(self, right: Array) -> Array:
        answer = self.solve(right)
        return np.concatenate([self.design.T @ answer, self.extra.T @ answer])
