"""Uploaded prompt files, kept under the digest of their bytes."""

import hashlib
from dataclasses import dataclass

from kvtuner_core.domain.provenance import utc_now
from kvtuner_core.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An uploaded file without its content.

    Attributes:
        digest: SHA-256 of its bytes, in hexadecimal.
        name: The file's name as given.
        size: Bytes.
        created: UTC, ISO 8601.
    """

    digest: str
    name: str
    size: int
    created: str


class Uploads:
    """The table ``uploads``; the same bytes are kept once, under the first name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_upload(self, name: str, data: bytes) -> Upload:
        """Keep a file and return what is stored of it."""
        digest = hashlib.sha256(data).hexdigest()
        created = utc_now()
        self._database.rows(
            "INSERT INTO uploads VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", [digest, name, data, created]
        )
        return next(upload for upload in self.uploads() if upload.digest == digest)

    def get_upload(self, digest: str) -> bytes | None:
        """A file's content, or ``None``."""
        rows = self._database.rows("SELECT body FROM uploads WHERE digest = ?", [digest])
        return bytes(rows[0][0]) if rows else None

    def uploads(self) -> tuple[Upload, ...]:
        """Every stored file, oldest first."""
        rows = self._database.rows(
            "SELECT digest, name, octet_length(body), created FROM uploads ORDER BY created, name"
        )
        return tuple(Upload(digest=row[0], name=row[1], size=row[2], created=row[3]) for row in rows)

    def delete_upload(self, digest: str) -> None:
        """Forget a file."""
        self._database.rows("DELETE FROM uploads WHERE digest = ?", [digest])
