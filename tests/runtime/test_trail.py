from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.runtime.trail import Trail, leading_full_layers, shared_layers


def _layers(*names):
    return tuple(LayerPrecision(pair=PrecisionPair.parse(name)) for name in names)


def test_a_policy_starts_where_it_leaves_the_longer_of_both_ways():
    trail = Trail(["full"] * 4)
    assert trail.start(_layers("KV16", "KV16", "K4V4", "K4V4")) == (2, ["full"] * 4)
    trail.keep(_layers("K8V4", "K4V4", "K2V2", "K4V4"), ["last"] * 4)
    assert trail.start(_layers("K8V4", "K4V4", "K4V4", "K4V4")) == (2, ["last"] * 4)
    assert trail.start(_layers("KV16", "K4V4", "K2V2", "K4V4")) == (1, ["full"] * 4)
    assert trail.start(_layers("K4V4", "K4V4", "K2V2", "K4V4"))[0] == 0
    assert trail.start(_layers("K8V4", "K4V4", "K2V2", "K4V4"))[0] == 4


def test_full_precision_is_the_same_however_it_is_written():
    heads = LayerPrecision(heads=(PrecisionPair.parse("KV16"),) * 2)
    assert shared_layers((heads, heads), _layers("KV16", "KV8")) == 1
    half = LayerPrecision(heads=(PrecisionPair.parse("KV16"), PrecisionPair.parse("KV8")))
    assert shared_layers((half,), _layers("KV16")) == 0


def test_leading_full_layers_are_counted():
    assert leading_full_layers(_layers("KV16", "K16V8", "KV16")) == 1
    assert leading_full_layers(_layers("KV16", "KV16")) == 2
    heads = LayerPrecision(heads=(PrecisionPair.parse("KV16"), PrecisionPair.parse("KV2")))
    assert leading_full_layers((heads,)) == 0
