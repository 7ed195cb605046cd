import pytest

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import PolicyError

SCHEME = QuantScheme.per_token()


def test_a_uniform_policy_is_named_after_its_pair():
    policy = KVPolicy.uniform("KV4", layers=3, scheme=SCHEME)
    assert policy.name == "K4V4"
    assert policy.nominal_bits == 4


def test_a_mixed_policy_is_named_after_its_bits():
    policy = KVPolicy.from_pairs([PrecisionPair.parse("K8V4"), PrecisionPair.parse("K2V2")], scheme=SCHEME)
    assert policy.uniform_pair is None
    assert policy.name == "mixed 4.00 bits"


def test_full_precision_is_recognised_per_head_too():
    assert KVPolicy(scheme=SCHEME, layers=(LayerPrecision(heads=(FULL_PAIR, FULL_PAIR)),)).is_full
    mixed = LayerPrecision(heads=(FULL_PAIR, PrecisionPair.parse("KV2")))
    assert not KVPolicy(scheme=SCHEME, layers=(mixed,)).is_full
    assert mixed.name == "[K16V16 K2V2]"


@pytest.mark.parametrize("layers", [0, 1025])
def test_the_number_of_layers_is_bounded(layers):
    with pytest.raises(PolicyError, match="1 to 1024 layers"):
        KVPolicy.uniform("K4V4", layers=layers, scheme=SCHEME)
