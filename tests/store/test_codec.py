import math

import pytest

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.study import SearchSpec, SweepSpec
from kvtuner_core.errors import StoreError
from kvtuner_core.store import from_json, to_json
from tests.fakes.measurements import score


def test_a_nested_value_comes_back_equal():
    spec = SearchSpec(sweep=SweepSpec(scheme=QuantScheme.kivi(), bits=(2, 3, 16)), max_bits=4.5)
    assert from_json(SearchSpec, to_json(spec)) == spec


def test_an_infinite_kl_comes_back_infinite():
    assert from_json(PolicyScore, to_json(score(math.inf))) == score(math.inf)


def test_what_cannot_be_read_is_named_in_one_line():
    with pytest.raises(StoreError, match=r"^A stored ModelSpec cannot be read: device: .* Delete that run") as caught:
        from_json(ModelSpec, '{"device": "abacus"}')
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="A stored ModelSpec cannot be read"):
        from_json(ModelSpec, "{")
