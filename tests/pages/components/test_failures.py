import logging

import pytest

from kvtuner_core.errors import InputError
from pages.components import failures


def test_an_error_raised_on_purpose_keeps_its_words():
    assert failures.describe(InputError("batch must be at least 1; got 0.")) == "batch must be at least 1; got 0."


def test_any_other_error_is_one_calm_line_and_is_logged(caplog):
    with caplog.at_level(logging.ERROR):
        message = failures.describe(ZeroDivisionError("secret"))
    assert message == failures.UNEXPECTED
    assert "secret" not in message
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.7", False), ("", False), ("kv.example", False)],
)
def test_only_loopback_counts_as_this_machine(address, loopback):
    from pages.components.workspace import is_loopback

    assert is_loopback(address) is loopback
