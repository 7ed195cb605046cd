"""Reading JSON strictly."""

import pytest

from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange.strict_json import one_line, read_json, read_text, shown


def test_plain_json_is_read():
    assert read_json('{"a": [1, 2.5, "x", null, true]}', what="It") == {"a": [1, 2.5, "x", None, True]}


def test_values_are_shown_short_and_on_one_line():
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 500).endswith("…")
    assert len(shown("x" * 500)) == 60
    assert shown({"a": 1}) == "an object of 1 entries"
    assert shown(10**4000) == "a number of more than 20 digits"
    assert one_line("a\u2028\ud800é") == r"a\u2028\ud800é"


def test_the_limit_counts_bytes():
    assert read_text("abc", what="It", limit=3) == "abc"
    with pytest.raises(PolicyError, match="at most"):
        read_text(b"abcd", what="It", limit=3)
