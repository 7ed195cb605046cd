"""The original project's YAML: layout, round trip, and refusals."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange import from_kvtuner_yaml, to_kvtuner_yaml
from kvtuner_core.exchange.kvtuner_yaml import MAX_YAML_BYTES
from tests.exchange.documents import PAIRS, is_one_line

SCHEME = QuantScheme.kivi()
LAYERWISE = "0:\n  nbits_key: 8\n  nbits_value: 4\n1:\n  nbits_key: 2\n  nbits_value: 2\n"
HEADWISE = (
    "0:\n  0:\n    nbits_key: 8\n    nbits_value: 4\n  1:\n    nbits_key: 4\n    nbits_value: 2\n"
    "1:\n  0:\n    nbits_key: 2\n    nbits_value: 2\n  1:\n    nbits_key: 8\n    nbits_value: 8\n"
)


@pytest.mark.parametrize("text", [LAYERWISE, HEADWISE])
def test_the_original_layouts_are_read_and_written_as_they_are(text):
    policy = from_kvtuner_yaml(text, scheme=SCHEME)
    assert policy.scheme == SCHEME
    assert to_kvtuner_yaml(policy) == text
    assert from_kvtuner_yaml(text.encode(), scheme=SCHEME) == policy


def test_the_bits_land_where_they_belong():
    assert [layer.name for layer in from_kvtuner_yaml(LAYERWISE, scheme=SCHEME).layers] == ["K8V4", "K2V2"]
    assert [layer.name for layer in from_kvtuner_yaml(HEADWISE, scheme=SCHEME).layers] == ["[K8V4 K4V2]", "[K2V2 K8V8]"]


def test_order_and_flow_style_do_not_matter():
    text = "1: {nbits_value: 2, nbits_key: 2}\n0: {nbits_key: 8, nbits_value: 4}\n"
    assert to_kvtuner_yaml(from_kvtuner_yaml(text, scheme=SCHEME)) == LAYERWISE


_LAYERS = st.one_of(
    st.builds(LayerPrecision, pair=PAIRS),
    st.builds(LayerPrecision, heads=st.lists(PAIRS, min_size=1, max_size=4).map(tuple)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_LAYERS, min_size=1, max_size=12).map(tuple))
def test_a_policy_survives_the_file(layers):
    policy = KVPolicy(scheme=SCHEME, layers=layers)
    assert from_kvtuner_yaml(to_kvtuner_yaml(policy), scheme=SCHEME) == policy


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must map layer numbers"),
        ("[]", "must map layer numbers"),
        ("{}", "must map layer numbers"),
        ("'0': {nbits_key: 8, nbits_value: 8}", "whole layer numbers as keys; got '0'"),
        ("true: {nbits_key: 8, nbits_value: 8}", "whole layer numbers as keys; got True"),
        ("1: {nbits_key: 8, nbits_value: 8}", "layer 0 is missing"),
        ("-1: {nbits_key: 8, nbits_value: 8}", "layer 0 is missing"),
        ("0: {nbits_key: 8}", "nbits_key and nbits_value"),
        ("0: {nbits_key: 8, nbits_value: 8, axis: 0}", "no more; got 'nbits_key'"),
        ("0: 8", "layer 0, must have nbits_key"),
        ("0: {}", "must map head numbers"),
        ("0: {0: {nbits_key: 8, nbits_value: 8}, 2: {nbits_key: 8, nbits_value: 8}}", "head 1 is missing"),
        ("0: {nbits_key: 5, nbits_value: 8}", "layer 0, key_bits must be one of"),
        ("0: {nbits_key: -1, nbits_value: -1}", "layer 0, key_bits must be one of"),
        ("0: {nbits_key: 8.0, nbits_value: 8}", "nbits_key as 16, 8, 4, 3 or 2; got 8.0"),
        ("0: {nbits_key: true, nbits_value: 8}", "nbits_key as 16"),
        ("0: {nbits_key: 99999999999999999999999, nbits_value: 8}", "20 digits"),
        (f"0: {{nbits_key: {'9' * 5000}, nbits_value: 8}}", "plain whole numbers"),
        ("0: {nbits_key: 2026-99-99, nbits_value: 8}", "plain whole numbers"),
        ("0: {nbits_key: 8, nbits_value: 8}\n0: {nbits_key: 4, nbits_value: 4}", "each key once"),
        ("0: {nbits_key: 8, nbits_key: 4, nbits_value: 8}", "each key once"),
        ("0: &a {nbits_key: 8, nbits_value: 8}\n1: *a", "no anchors"),
        ("0: !!python/object/apply:os.system [ls]", "no tags"),
        ("? [0]\n: 1", "YAML"),
        ("? {}\n: 1", "YAML"),
        ("0: {nbits_key: 8, nbits_value: 8}\n---\n1: 2", "YAML"),
        ("0: [", "line 1"),
        ("0: {nbits_key: \x00}", "YAML"),
        ("[" * 50_000, "levels deep"),
        ("x" * (MAX_YAML_BYTES + 1), "at most 1024 KiB"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
    ids=range(31),
)
def test_what_is_wrong_is_one_clear_line(text, match):
    with pytest.raises(PolicyError, match=match) as caught:
        from_kvtuner_yaml(text, scheme=SCHEME)
    assert is_one_line(str(caught.value))


def test_an_alias_bomb_is_refused_before_it_grows():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(PolicyError, match="anchors"):
        from_kvtuner_yaml(bomb, scheme=SCHEME)


def test_mutated_files_are_a_policy_or_one_error():
    rng = random.Random(7)
    base = HEADWISE + "2:\n  nbits_key: 16\n  nbits_value: 3\n"
    valid = 0
    messages = []
    for _ in range(1500):
        raw = bytearray(base.encode())
        for _ in range(rng.choice((1, 1, 2, 6))):
            raw[rng.randrange(len(raw))] = rng.choice((rng.randrange(256), *b"0123456789:{}[]&*!-' \n"))
        try:
            policy = from_kvtuner_yaml(
                bytes(raw[: rng.choice((len(raw), len(raw), rng.randrange(1, len(raw))))]), scheme=SCHEME
            )
        except PolicyError as error:
            messages.append(str(error))
        else:
            valid += 1
            assert from_kvtuner_yaml(to_kvtuner_yaml(policy), scheme=SCHEME) == policy
    assert not [message for message in messages if not is_one_line(message)]
    assert valid > 10
