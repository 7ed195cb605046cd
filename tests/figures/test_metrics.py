"""Labels of the metrics."""

import pytest

from kvtuner_core.errors import InputError
from kvtuner_core.figures.metrics import METRICS, label, value
from tests.fakes.studies import sweep_result


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_label_with_its_unit_and_a_value(metric):
    assert "(" in label(metric)
    assert value(sweep_result(layers=6).profiles[0], metric) >= 0


def test_another_metric_is_refused():
    with pytest.raises(InputError, match="one of kl, output_error"):
        label("loss")
