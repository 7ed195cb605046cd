"""Speeds that were measured on a GPU and ship with the project, and where a policy lies among them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair
from kvtuner_core.domain.scheme import Granularity
from kvtuner_core.domain.speed import MeasuredSpeed, SpeedRow, SpeedTable
from kvtuner_core.errors import InputError, StoreError
from kvtuner_core.services.workspace import DATA_FOLDER
from kvtuner_core.store import from_json

MEASURED_FILE = DATA_FOLDER / "measured_speed.json"
"""The shipped tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A measured uniform policy beside a policy that was not measured itself.

    Attributes:
        pair: Its name; full precision where no measured pair is so wide.
        relation: ``the same``, ``next wider`` or ``next narrower``.
        rows: What it measured, a row a shape; empty for full precision.
    """

    pair: str
    relation: str
    rows: tuple[SpeedRow, ...]


def measured_speed() -> MeasuredSpeed | None:
    """The shipped tables, or ``None`` where their file is missing.

    Raises:
        InputError: If the file is damaged.
    """
    if not MEASURED_FILE.is_file():
        return None
    return _read(MEASURED_FILE, MEASURED_FILE.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> MeasuredSpeed:
    del changed
    try:
        return from_json(MeasuredSpeed, path.read_text(encoding="utf-8"))
    except StoreError:
        raise InputError(
            f"{path.name} must hold measured speeds; got something else. Write it again with: make measured."
        ) from None


def scheme_of(table: SpeedTable, policy: KVPolicy) -> str:
    """The measured scheme that groups keys as a policy does."""
    channel = policy.scheme.key_granularity is Granularity.CHANNEL
    alike = [name for name in table.schemes if (name != "per-token") is channel]
    return alike[0] if alike else table.schemes[0]


def neighbours(table: SpeedTable, policy: KVPolicy, scheme: str) -> tuple[Neighbour, ...]:
    """The measured uniform policies next to a policy by its nominal bits: one if it was measured, else two."""
    rows = table.of_scheme(scheme)
    measured = {PrecisionPair.parse(name) for name in dict.fromkeys(row.pair for row in rows)} | {FULL_PAIR}
    same = policy.uniform_pair
    if same in measured:
        return (_neighbour(same, "the same", rows),)
    bits = policy.nominal_bits
    wider = min((pair for pair in measured if pair.nominal_bits >= bits), key=lambda pair: pair.nominal_bits)
    narrower = max(
        (pair for pair in measured if pair.nominal_bits < bits), key=lambda pair: pair.nominal_bits, default=None
    )
    found = [_neighbour(wider, "next wider", rows)]
    return tuple(found if narrower is None else [*found, _neighbour(narrower, "next narrower", rows)])


def _neighbour(pair: PrecisionPair, relation: str, rows: tuple[SpeedRow, ...]) -> Neighbour:
    return Neighbour(pair=pair.name, relation=relation, rows=tuple(row for row in rows if row.pair == pair.name))
