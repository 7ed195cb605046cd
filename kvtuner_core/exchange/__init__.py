"""Policy files in and out: our own ``policy.json`` and the original project's YAML."""

from kvtuner_core.exchange.kvtuner_yaml import from_kvtuner_yaml, to_kvtuner_yaml
from kvtuner_core.exchange.policy_file import document_from_json, document_to_json, json_schema
from kvtuner_core.exchange.strict_json import MAX_FILE_BYTES

__all__ = [
    "MAX_FILE_BYTES",
    "document_from_json",
    "document_to_json",
    "from_kvtuner_yaml",
    "json_schema",
    "to_kvtuner_yaml",
]
