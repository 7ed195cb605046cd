"""``policy.json``: round trip, schema, and a clear line for everything wrong."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from kvtuner_core.domain.document import ModelIdentity, PolicyDocument
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange import MAX_FILE_BYTES, document_from_json, document_to_json, json_schema
from tests.exchange.documents import NOT_FINITE, documents, example, is_one_line

SCHEMA_FILE = Path(__file__).parents[2] / "data" / "policy.schema.json"


@settings(deadline=None, max_examples=80)
@given(documents())
def test_a_document_survives_the_file(document):
    text = document_to_json(document)
    assert document_from_json(text) == document
    assert document_from_json(text.encode()) == document
    assert document_to_json(document_from_json(text)) == text


@pytest.mark.parametrize("heads", [False, True])
def test_what_the_program_writes_reads_back_and_has_the_named_parts(heads):
    document = example(heads=heads)
    text = document_to_json(document)
    assert document_from_json(text) == document
    data = json.loads(text)
    assert (data["format"], data["version"]) == ("kvtuner-policy", 1)
    assert data["model"]["layers"] == len(data["layers"]) == 30
    assert data["model"]["geometry"][0] == {
        "layer": 0,
        "type": "full_attention",
        "kv_heads": 3,
        "key_dim": 64,
        "value_dim": 64,
        "sliding_window": None,
    }
    assert set(data["layers"][1]) == {"layer", "key_bits", "value_bits"}
    assert set(data["memory"]) == {"nominal_bits", "effective_bits", "bytes_per_token"}
    assert data["scheme"]["group_size"] == 32


def test_the_published_schema_is_the_code():
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("heads", [False, True])
def test_what_the_program_writes_is_valid_by_the_schema(heads):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    data = json.loads(document_to_json(example(heads=heads)))
    assert not list(validator.iter_errors(data))
    assert list(validator.iter_errors(data | {"surprise": 1}))


def _changed(path, value):
    data = json.loads(document_to_json(example(heads=True)))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is _DROP:
        del place[path[-1]]
    elif value is _ADD:
        place.append(copy.deepcopy(place[-1]))
    else:
        place[path[-1]] = value
    return json.dumps(data)


_DROP, _ADD = object(), object()
_CASES = [
    (["format"], "gguf", "must say format"),
    (["format"], _DROP, "got none"),
    (["version"], 2, "newer. Update"),
    (["version"], True, "whole number"),
    (["version"], "1", "whole number"),
    (["version"], 0, "whole number"),
    (["scheme"], _DROP, "scheme is needed"),
    (["schema"], {}, "schema is not a key of this format"),
    (["layers", 3, "key_bits"], 5, r"layers\[3\]\.key_bits should be 16, 8, 4, 3 or 2; got 5"),
    (["layers", 3, "key_bits"], True, r"layers\[3\]\.key_bits"),
    (["layers", 3, "key_bits"], 4.0, r"layers\[3\]\.key_bits"),
    (["layers", 3, "key_bits"], "4", r"layers\[3\]\.key_bits"),
    (["layers", 3, "key_bits"], None, r"layers\[3\] needs key_bits and value_bits"),
    (["layers", 3, "layer"], 4, "entry 3 is layer 4"),
    (["layers", 3], _DROP, "entry 3 is layer 4"),
    (["layers", 29], _DROP, "each of the model's 30 layers; got 29"),
    (["layers", 0, "heads", 1, "head"], 0, r"layers\[0\]\.heads must list every head once"),
    (["layers", 0, "heads", 2], _DROP, "has 3 KV heads; the policy gives 2"),
    (["layers"], [], "layers"),
    (["model", "geometry", 2], _DROP, "entry 2 is layer 3"),
    (["model", "geometry", 29], _DROP, "model.geometry must have one entry for each"),
    (["model", "geometry", 2, "type"], "sliding_attention", "exactly where its type"),
    (["model", "geometry", 2, "key_dim"], 48, "must divide head_dim"),
    (["model", "geometry", 2, "key_dim"], 0, "greater than or equal to 1"),
    (["model", "geometry", 2, "kv_heads"], 10**30, "more than 20 digits"),
    (["layers", 0, "key_bits"], 10**400, "whole number of at most 20 digits; got a number of more"),
    (["scheme", "group_size"], 1, "group_size must be a whole number from 2"),
    (["scheme", "key_granularity"], "row", "scheme.key_granularity"),
    (["scheme", "symmetric"], 1, "scheme.symmetric"),
    (["memory", "nominal_bits"], 1.5, "memory.nominal_bits must be"),
    (["memory", "effective_bits"], 4.0, "memory.effective_bits must be"),
    (["memory", "bytes_per_token"], 4.0, "memory.bytes_per_token must be"),
    (["evidence", "calibration_kl", "low"], 1e9, "low up to high"),
    (["evidence", "top1_agreement"], 1.5, "less than or equal to 1"),
    (["notes"], {"a": 1}, "notes.a"),
    (["origin"], "\ud800", "origin"),
    (["a\nb\u2028"], 1, "is not a key of this format"),
]


@pytest.mark.parametrize(("path", "value", "match"), _CASES, ids=[f"{path}-{match}" for path, _, match in _CASES])
def test_what_is_wrong_is_one_clear_line(path, value, match):
    with pytest.raises(PolicyError, match=match) as caught:
        document_from_json(_changed(path, value))
    assert is_one_line(str(caught.value))


def test_a_changed_layer_contradicts_the_stated_memory():
    with pytest.raises(PolicyError, match="undo the change to the layers"):
        document_from_json(_changed(["layers", 5], {"layer": 5, "key_bits": 16, "value_bits": 16}))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must be JSON"),
        ("[]", "must be a JSON object; got a list"),
        ("null", "must be a JSON object"),
        ('{"format": "kvtuner-policy", "format": "kvtuner-policy"}', "got 'format' twice"),
        ('{"format": "kvtuner-policy", "version": NaN}', "finite; got NaN"),
        ('{"a": -Infinity}', "finite; got -Infinity"),
        ('{"a": 1e999}', "finite; got '1e999'"),
        ('{"a": ' + "9" * 5000 + "}", "20 digits"),
        ("[" * 100_000, "levels deep"),
        ('{"a":' * 100_000, "levels deep"),
        (b"\xff\xfe{}", "must be UTF-8"),
        (b" " * (MAX_FILE_BYTES + 1), "at most 4096 KiB"),
        (" " * (MAX_FILE_BYTES + 1), "at most 4096 KiB"),
    ],
    ids=range(13),
)
def test_hostile_text_is_refused_in_one_line(text, match):
    with pytest.raises(PolicyError, match=match) as caught:
        document_from_json(text)
    assert is_one_line(str(caught.value))


def test_a_byte_order_mark_is_forgiven():
    document = example(layers=4)
    assert document_from_json(b"\xef\xbb\xbf" + document_to_json(document).encode()) == document
    assert document_from_json("\ufeff" + document_to_json(document)) == document


def test_a_policy_by_hand_needs_neither_geometry_nor_evidence():
    policy = KVPolicy.uniform("K4V2", layers=2, scheme=QuantScheme.per_token())
    document = PolicyDocument(policy=policy, model=ModelIdentity(id="mine"), nominal_bits=3.0)
    assert document_from_json(document_to_json(document)) == document


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_document_with_a_number_that_is_not_finite_is_not_written(value):
    with pytest.raises(PolicyError, match="nominal_bits") as caught:
        document_to_json(replace(example(layers=4), nominal_bits=value))
    assert is_one_line(str(caught.value))


def test_a_document_that_contradicts_itself_is_not_written():
    with pytest.raises(PolicyError, match=r"memory\.nominal_bits"):
        document_to_json(replace(example(layers=4), nominal_bits=1.0))
