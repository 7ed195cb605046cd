import numpy as np
import pytest
import torch

from kvtuner_core.domain.memory import stored_tokens
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.visibility import Layout

SCHEMES = [
    QuantScheme.per_token(),
    QuantScheme.per_token(residual_length=5, sink_length=3),
    QuantScheme.kivi(group_size=4, residual_length=6),
    QuantScheme.kivi(group_size=8, residual_length=0, sink_length=2),
    QuantScheme.kivi(group_size=16, residual_length=0),
    QuantScheme.per_token(residual_share=0.3, sink_length=3),
    QuantScheme.kivi(group_size=4, residual_length=6, residual_share=0.5),
]


@pytest.mark.parametrize("window", [None, 7, 12, 40])
@pytest.mark.parametrize("prefix", [1, 8, 13, 31, 64])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_every_query_sees_each_visible_token_once_in_the_version_that_is_stored(scheme, prefix, window):
    suffix = 19
    layout = Layout.build(scheme, prefix=prefix, suffix=suffix, window=window)
    spans = [(layout.sinks, False), (layout.packed, True), (layout.exact, False), (layout.boundary, True)]
    slots = {
        (position, kind): span.slot + position - span.start
        for span, kind in spans
        for position in range(span.start, span.stop)
    }
    mask = layout.mask(torch.device("cpu")).numpy()
    assert mask.shape == (suffix, layout.slots)
    for row in range(suffix):
        query = prefix + row
        held = stored_tokens(scheme, query, window)
        first = 0 if window is None else max(0, query - window + 1)
        quantised = range(query - held.window - held.packed, query - held.window)
        expected = np.zeros(layout.slots, dtype=bool)
        for position in range(first, query + 1):
            expected[slots[position, position in quantised]] = True
        np.testing.assert_array_equal(mask[row], expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_the_suffixs_own_slots_lie_together(scheme):
    layout = Layout.build(scheme, prefix=21, suffix=5, window=None)
    assert layout.new.stop - layout.new.start == 5
    assert layout.new.stop == layout.boundary.slot
    assert layout.boundary.tokens % scheme.flush_tokens == 0
