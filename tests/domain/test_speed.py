import pytest

from kvtuner_core.domain.speed import SpeedOrigin, SpeedRow, SpeedTable
from kvtuner_core.errors import InputError


def _row(**more):
    numbers = {"batch": 8, "length": 32768, "ms": 5.0, "full_ms": 10.0, "speedup": 2.0, "ceiling": 2.5, **more}
    return SpeedRow(**{"pair": "K4V4", "scheme": "per-token", **numbers})


def test_a_row_knows_its_shape_and_its_share_of_the_ceiling():
    assert _row().shape == "8 x 32k"
    assert _row().of_ceiling == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["batch", "length", "ms", "full_ms", "speedup", "ceiling"])
def test_numbers_that_cannot_be_measured_are_refused(name):
    with pytest.raises(InputError, match="positive numbers"):
        _row(**{name: 0})


def test_the_rows_of_a_scheme_come_small_shapes_first():
    origin = SpeedOrigin(device="GPU", versions=(), date="2026-11-24", command="x", copy_gb_per_s=1.0)
    rows = (_row(), _row(batch=1, length=4096), _row(scheme="kivi"), _row(batch=64, length=4096))
    table = SpeedTable(origin=origin, rows=rows)
    assert table.schemes == ("per-token", "kivi")
    assert [row.shape for row in table.of_scheme("per-token")] == ["1 x 4k", "8 x 32k", "64 x 4k"]
