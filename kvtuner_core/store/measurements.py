"""Scores, profiles and replies under their content addresses."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvtuner_core.domain.metrics import ErrorProfile, Interval, Measured, PolicyScore
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.questions import Reply
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.errors import StoreError
from kvtuner_core.store.codec import from_json, to_json
from kvtuner_core.store.database import Database, Row
from kvtuner_core.store.keys import Identity

_SCORE = (
    "kl, kl_low, kl_high, top1_agreement, nll_change, kl_per_prompt, tokens_per_prompt, cache_bytes, seconds, others"
)
_PROFILE = "layer, pair, key_error, value_error, score_error, output_error, kl, local_seconds, kl_seconds"
_REPLY = "correct, nll, given, prompt_tokens, seconds"
_PROVENANCE = "created, device, device_type, dtype, versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Others:
    """The column ``others``: a type of its own, so that infinite values keep their number."""

    items: tuple[Measured, ...]


class Measurements:
    """The tables ``scores``, ``partial_scores``, ``profiles`` and ``replies``.

    Putting the same identity twice keeps the first numbers: both measure the same thing. Only the
    objectives beside the mean KL are taken from the later score, for older scores have fewer.
    Infinite values are kept as they are; a value that is not a number is refused.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_score(self, key: str) -> PolicyScore | None:
        """The score stored under ``key``, or ``None``."""
        return self.get_scores([key]).get(key)

    def get_scores(self, keys: Sequence[str]) -> dict[str, PolicyScore]:
        """The scores stored under ``keys``, by key; without those that are not there."""
        return {key: _score(row) for key, row in self._found("scores", _SCORE, keys)}

    def put_score(self, identity: Identity, score: PolicyScore, provenance: Provenance) -> None:
        """Keep a score; see `put_scores`."""
        self.put_scores([(identity, score)], provenance)

    def put_scores(self, scores: Sequence[tuple[Identity, PolicyScore]], provenance: Provenance) -> None:
        """Keep scores of different identities; all are on disk when this returns, or none is kept.

        Raises:
            StoreError: If a number of them is NaN.
        """
        where = _provenance_values(provenance)
        rows = [
            (identity, [*_score_values(one), *where, to_json(_Others(items=one.others))]) for identity, one in scores
        ]
        self._put("scores", rows, conflict="DO UPDATE SET others = excluded.others")

    def count_scores(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` are stored; a key given twice counts once."""
        return self._count("scores", keys)

    def get_partial(self, key: str) -> PartialScore | None:
        """What is stored under ``key`` of a policy whose evaluation was stopped, or ``None``."""
        return self.get_partials([key]).get(key)

    def get_partials(self, keys: Sequence[str]) -> dict[str, PartialScore]:
        """What is stored under ``keys``, by key; without those that are not there."""
        return {key: from_json(PartialScore, row[0]) for key, row in self._found("partial_scores", "body", keys)}

    def put_partial(self, identity: Identity, partial: PartialScore, provenance: Provenance) -> None:
        """Keep what was seen of a policy; see `put_partials`."""
        self.put_partials([(identity, partial)], provenance)

    def put_partials(self, partials: Sequence[tuple[Identity, PartialScore]], provenance: Provenance) -> None:
        """Keep what was seen of different policies in place of what was kept of them; on disk when this returns.

        Raises:
            StoreError: If a number of them is NaN.
        """
        for _, partial in partials:
            _check_numbers("partial score", partial.losses)
        where = _provenance_values(provenance)
        rows = [(identity, [to_json(partial), *where]) for identity, partial in partials]
        self._put("partial_scores", rows, conflict="DO UPDATE SET body = excluded.body")

    def get_profile(self, key: str) -> ErrorProfile | None:
        """The error profile stored under ``key``, or ``None``."""
        return self.get_profiles([key]).get(key)

    def get_profiles(self, keys: Sequence[str]) -> dict[str, ErrorProfile]:
        """The error profiles stored under ``keys``, by key; without those that are not there."""
        return {key: _profile(row) for key, row in self._found("profiles", _PROFILE, keys)}

    def put_profile(self, identity: Identity, profile: ErrorProfile, provenance: Provenance) -> None:
        """Keep an error profile; see `put_profiles`."""
        self.put_profiles([(identity, profile)], provenance)

    def put_profiles(self, profiles: Sequence[tuple[Identity, ErrorProfile]], provenance: Provenance) -> None:
        """Keep error profiles of different identities; all are on disk when this returns, or none is kept.

        Raises:
            StoreError: If a number of them is NaN.
        """
        where = _provenance_values(provenance)
        rows = [
            (identity, [*_profile_values(one), *where, one.local_seconds, one.kl_seconds]) for identity, one in profiles
        ]
        self._put("profiles", rows)

    def count_profiles(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` are stored; a key given twice counts once."""
        return self._count("profiles", keys)

    def get_reply(self, key: str) -> Reply | None:
        """The reply stored under ``key``, or ``None``."""
        rows = self._database.rows(f"SELECT {_REPLY} FROM replies WHERE key = ?", [key])  # noqa: S608 - a constant
        return Reply(**dict(zip(_REPLY.split(", "), rows[0], strict=True))) if rows else None

    def put_reply(self, identity: Identity, reply: Reply, provenance: Provenance) -> None:
        """Keep a reply; it is on disk when this returns.

        Raises:
            StoreError: If its likelihood is NaN.
        """
        _check_numbers("reply", (reply.nll,))
        values = [reply.correct, reply.nll, reply.given, reply.prompt_tokens, reply.seconds]
        self._put("replies", [(identity, [*values, *_provenance_values(provenance)])])

    def count_replies(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` are stored; a key given twice counts once."""
        return self._count("replies", keys)

    def get_provenance(self, key: str) -> Provenance | None:
        """Where and when the score or profile under ``key`` was measured, or ``None``."""
        rows = self._database.rows(
            f"SELECT {_PROVENANCE} FROM scores WHERE key = ? "  # noqa: S608 - a constant
            f"UNION ALL SELECT {_PROVENANCE} FROM profiles WHERE key = ?",
            [key, key],
        )
        if not rows:
            return None
        created, device, device_type, dtype, versions = rows[0]
        pairs = from_json(tuple[tuple[str, str], ...], versions)
        return Provenance(created=created, device=device, device_type=device_type, dtype=dtype, versions=pairs)

    def _put(self, table: str, rows: Sequence[tuple[Identity, list[object]]], *, conflict: str = "DO NOTHING") -> None:
        """Insert rows by one statement: DuckDB takes milliseconds for each, however short."""
        if not rows:
            return
        whole = [[identity.key, identity.text, *values] for identity, values in rows]
        marks = ", ".join("(" + ", ".join("?" for _ in row) + ")" for row in whole)
        sql = f"INSERT INTO {table} VALUES {marks}"  # noqa: S608 - as above
        self._database.insert(sql, [value for row in whole for value in row], conflict=conflict)

    def _found(self, table: str, columns: str, keys: Sequence[str]) -> list[tuple[str, Row]]:
        sql = f"SELECT key, {columns} FROM {table} WHERE key IN (SELECT unnest(?::VARCHAR[]))"  # noqa: S608 - as above
        return [(str(key), tuple(row)) for key, *row in self._database.rows(sql, [list(keys)])]

    def _count(self, table: str, keys: Iterable[str]) -> int:
        sql = f"SELECT count(*) FROM {table} WHERE key IN (SELECT unnest(?::VARCHAR[]))"  # noqa: S608 - as above
        return int(self._database.rows(sql, [list(keys)])[0][0])


def _check_numbers(kind: str, numbers: Iterable[float]) -> None:
    if any(math.isnan(number) for number in numbers):
        raise StoreError(
            f"A stored {kind} holds numbers or infinity; got nan. "
            "The model's outputs overflowed: load it in bfloat16 or float32."
        )


def _score_values(score: PolicyScore) -> list[object]:
    numbers = (score.kl.mean, score.kl.low, score.kl.high, score.top1_agreement, score.nll_change)
    beside = [number for item in score.others for number in (item.interval.mean, *item.per_prompt)]
    _check_numbers("score", (*numbers, *score.kl_per_prompt, *beside))
    return [*numbers, list(score.kl_per_prompt), list(score.tokens_per_prompt), score.cache_bytes, score.seconds]


def _profile_values(profile: ErrorProfile) -> list[object]:
    numbers = (profile.key_error, profile.value_error, profile.score_error, profile.output_error, profile.kl)
    _check_numbers("profile", numbers)
    return [profile.layer, profile.pair.name, *numbers]


def _provenance_values(provenance: Provenance) -> list[object]:
    where = [provenance.created, provenance.device, provenance.device_type, provenance.dtype]
    return [*where, to_json(provenance.versions)]


def _score(row: Row) -> PolicyScore:
    mean, low, high, top1, nll, kls, tokens, cache_bytes, seconds, others = row
    return PolicyScore(
        kl=Interval(mean=mean, low=low, high=high),
        top1_agreement=top1,
        nll_change=nll,
        kl_per_prompt=tuple(kls),
        tokens_per_prompt=tuple(tokens),
        cache_bytes=cache_bytes,
        seconds=seconds,
        others=from_json(_Others, others).items if others else (),
    )


def _profile(row: Row) -> ErrorProfile:
    layer, pair, key_error, value_error, score_error, output_error, kl, local_seconds, kl_seconds = row
    return ErrorProfile(
        layer=layer,
        pair=PrecisionPair.parse(pair),
        key_error=key_error,
        value_error=value_error,
        score_error=score_error,
        output_error=output_error,
        kl=kl,
        local_seconds=local_seconds,
        kl_seconds=kl_seconds,
    )
