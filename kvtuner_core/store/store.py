"""The store as the services see it."""

from pathlib import Path
from types import TracebackType
from typing import Self

from kvtuner_core.domain.tasks import ModelReport
from kvtuner_core.store.codec import from_json, to_json
from kvtuner_core.store.database import Database
from kvtuner_core.store.layer_scores import LayerScores
from kvtuner_core.store.measurements import Measurements
from kvtuner_core.store.runs import Runs
from kvtuner_core.store.uploads import Uploads


class Store(Measurements, LayerScores, Runs, Uploads):
    """Scores, profiles, runs, results, models and uploads in one DuckDB file; safe to share between threads.

    What a method was given is on disk when it returns, and survives the death of the process.
    """

    @classmethod
    def open(cls, path: Path | None) -> "Store":
        """Open the file and bring it to the newest schema; ``None`` keeps everything in memory.

        Raises:
            StoreError: If the file is held by another process (its PID is named), was written by a
                newer program, is damaged, or cannot be reached.
        """
        return cls(Database.open(path))

    def put_report(self, reference: str, signature: str, report: ModelReport) -> None:
        """Keep what a worker said of a model; a second report replaces the first.

        Args:
            reference: The model as asked for.
            signature: Device, dtype and whatever else tells one report of it from another.
            report: What the worker answered.
        """
        self._database.rows(
            "INSERT INTO models VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET report = excluded.report",
            [reference, signature, to_json(report)],
        )

    def get_report(self, reference: str, signature: str) -> ModelReport | None:
        """The report stored for a model, or ``None``."""
        rows = self._database.rows(
            "SELECT report FROM models WHERE reference = ? AND signature = ?", [reference, signature]
        )
        return from_json(ModelReport, rows[0][0]) if rows else None

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
