"""What has been measured and what was asked, in one DuckDB file; all SQL lives here."""

from kvtuner_core.store.codec import from_json, to_json
from kvtuner_core.store.keys import Identity, SessionIdentity, reply_identity
from kvtuner_core.store.store import Store
from kvtuner_core.store.uploads import Upload

__all__ = ["Identity", "SessionIdentity", "Store", "Upload", "from_json", "reply_identity", "to_json"]
