"""Scores of all layers at once under their content addresses."""

import math
from typing import TypeVar

from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scores import ErrorScores, WeightScores
from kvtuner_core.errors import StoreError
from kvtuner_core.store.codec import from_json, to_json
from kvtuner_core.store.database import Database
from kvtuner_core.store.keys import Identity

S = TypeVar("S", ErrorScores, WeightScores)


class LayerScores:
    """The table ``layer_scores``; putting the same identity twice keeps the first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_layer_scores(self, kind: type[S], key: str) -> S | None:
        """The scores stored under ``key``, or ``None``."""
        rows = self._database.rows("SELECT body FROM layer_scores WHERE key = ?", [key])
        return from_json(kind, rows[0][0]) if rows else None

    def put_layer_scores(self, identity: Identity, scores: ErrorScores | WeightScores, provenance: Provenance) -> None:
        """Keep scores; they are on disk when this returns.

        Raises:
            StoreError: If a number of them is NaN.
        """
        if any(math.isnan(number) for number in _numbers(scores)):
            raise StoreError(
                "A stored layer score is a number; got nan. "
                "The model's gradients overflowed: load it in bfloat16 or float32."
            )
        where = [provenance.created, provenance.device, provenance.device_type, provenance.dtype]
        self._database.rows(
            "INSERT INTO layer_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [identity.key, identity.text, to_json(scores), *where, to_json(provenance.versions)],
        )


def _numbers(scores: ErrorScores | WeightScores) -> list[float]:
    if isinstance(scores, ErrorScores):
        return [number for pair in scores.pairs for number in (pair.gradient_error, pair.fisher_error)]
    return [
        number
        for layer in scores.layers
        for number in (layer.key_gradient, layer.value_gradient, layer.key_weight, layer.value_weight)
    ]
