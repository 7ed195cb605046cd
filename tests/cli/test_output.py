import contextlib
import io
import json
from pathlib import Path

import pytest

from kvtuner_core.cli.output import Output, table
from kvtuner_core.errors import KVTunerError


def test_numbers_that_are_not_finite_become_null():
    out = io.StringIO()
    value = {"a": float("nan"), "b": [float("inf"), 1.5, {"c": (-float("inf"), "x", None, True)}]}
    Output(stdout=out, stderr=out, as_json=True).document(value)
    assert json.loads(out.getvalue()) == {"a": None, "b": [None, 1.5, {"c": [None, "x", None, True]}]}
    assert "NaN" not in out.getvalue()


def test_tables_line_up():
    text = table(["name", "bits"], [["a", 4.0], ["longer", 12.3456]])
    assert text.splitlines() == ["name     bits", "a           4", "longer  12.35"]
    assert table(["name"], []) == "name"


def test_a_stdout_that_is_full_is_one_clear_line():
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(KVTunerError, match="No space left on device") as caught:
        Output(stdout=full, stderr=full, as_json=True).document({"a": 1})
    assert "\n" not in str(caught.value)
    with contextlib.suppress(OSError):
        full.close()
