"""A policy in one line."""

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.figures import summary
from kvtuner_core.figures.policy_text import wrapped

SCHEME = QuantScheme.per_token()


def _policy(names):
    return KVPolicy.from_pairs((PrecisionPair.parse(name) for name in names.split()), scheme=SCHEME)


def test_runs_of_equal_layers_are_joined():
    assert summary(_policy("K8V4 KV4 KV4 KV4 KV4 KV2")) == "L0 K8V4 · L1-4 K4V4 · L5 K2V2"
    assert summary(_policy("KV4 KV4")) == "L0-1 K4V4"


def test_bits_per_head_are_shown():
    heads = LayerPrecision(heads=(PrecisionPair.parse("K8V4"), PrecisionPair.parse("KV2")))
    assert summary(KVPolicy(scheme=SCHEME, layers=(heads,))) == "L0 [K8V4 K2V2]"


def test_long_lines_are_wrapped_between_runs():
    text = summary(_policy("KV8 KV4 " * 15))
    lines = wrapped(text).split("<br>")
    assert len(lines) > 3
    assert " · ".join(lines) == text
    assert max(map(len, lines)) < 80
