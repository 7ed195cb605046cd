"""What is kept where, and which policies share a pass, change no number."""

from dataclasses import replace

import pytest
import torch

from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair, candidate_pairs
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.runtime import attending, footprint, session
from kvtuner_core.runtime.attending import joined, plain_attention
from kvtuner_core.runtime.bank import Storage
from kvtuner_core.runtime.profiling import profile_layer
from kvtuner_core.runtime.session import Session
from tests.fakes.models import tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec, mixed_policy

SCHEMES = {
    "per-token": QuantScheme.per_token(),
    "kivi": QuantScheme.kivi(group_size=4, residual_length=6),
    "rotated": QuantScheme.per_token(rotation=Rotation.KEYS_AND_VALUES),
    "sinks": QuantScheme.per_token(group_size=8, residual_length=3, sink_length=5),
}


def _policies(scheme, kv_heads):
    names = ("K2V4", "K8V16", "K16V16", "K4V2", "K3V3")
    uniform = [KVPolicy.uniform(name, layers=3, scheme=scheme) for name in names]
    return [*uniform, mixed_policy(scheme, 3), mixed_policy(scheme, 3, heads=kv_heads)]


def _without_time(scores):
    return [replace(score, seconds=0.0) for score in scores]


def _batched(monkeypatch, rows, *, way):
    monkeypatch.setattr(footprint, "_pass_rows", lambda *_: rows)
    monkeypatch.setitem(footprint.GATHERED_BYTES, "cpu", 1 << 30 if way == "gathered" else 0)
    monkeypatch.setitem(attending.SPLIT_SLOTS, "cpu", 4 if way == "split" else 1 << 60)


@pytest.mark.parametrize("way", ["gathered", "split", "one by one"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gemma2"])
def test_policies_that_share_a_pass_score_as_each_alone(monkeypatch, family, scheme, way):
    spec = make_spec(scheme)
    loaded = make_loaded(tiny_model(family))
    alone = Session(loaded, spec)
    policies = _policies(scheme, alone.layers[0].kv_heads)
    expected = [alone.score(policy) for policy in policies]
    _batched(monkeypatch, 4 * 3 * 17, way=way)
    shared = Session(loaded, spec)
    assert shared.together == 4
    found = shared.score_many(policies)
    assert found[2].kl.mean == 0
    assert all(one.kl.mean > 0 for index, one in enumerate(found) if index != 2)
    for one, other in zip(found, expected, strict=True):
        # The parts of a split attention are computed in float32.
        close = {"rel": 2e-3, "abs": 1e-5} if way == "split" else {"rel": 1e-9, "abs": 1e-12}
        assert one.kl_per_prompt == pytest.approx(other.kl_per_prompt, **close)
        assert one.nll_change == pytest.approx(other.nll_change, **close)
    if way == "split":
        # On a CPU the rounding of small float32 products depends on where they lie in memory.
        return
    # Company, place and padding do not matter at all.
    again = [*shared.score_many(policies[::-1])[::-1], *shared.score_many(policies[:1])]
    assert _without_time(again) == _without_time([*found, found[0]])


def test_isolated_errors_do_not_depend_on_the_pairs_measured_with_them(monkeypatch):
    spec = make_spec(SCHEMES["kivi"])
    loaded = make_loaded(tiny_model("llama"))
    pairs = candidate_pairs((8, 4, 2))
    expected = profile_layer(Session(loaded, spec), 1, pairs)
    _batched(monkeypatch, 4 * 3 * 17, way="gathered")
    shared = Session(loaded, spec)
    together = profile_layer(shared, 1, pairs)
    assert [profile_layer(shared, 1, [pair])[0] for pair in pairs] == list(together)
    for one, other in zip(together, expected, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("on_host", [False, True])
def test_packed_codes_and_spilled_prefixes_give_the_same_numbers(monkeypatch, family, scheme, on_host):
    spec = make_spec(scheme, texts=(TEXTS[0], TEXTS[1][:40]))
    loaded = make_loaded(tiny_model(family))
    values = Session(loaded, spec)
    assert values.plan.storage is Storage.VALUES
    policies = _policies(scheme, values.layers[0].kv_heads)
    plan = session.plan_memory

    def frugal(*args):
        return replace(plan(*args), storage=Storage.CODES, on_host=on_host, weights_bytes=20_000)

    monkeypatch.setattr(session, "plan_memory", frugal)
    codes = Session(loaded, spec)
    assert _without_time(codes.score_many(policies)) == _without_time(values.score_many(policies))
    kept = [sum(banked.bank.bytes for one in which.prepared for banked in one.banked) for which in (codes, values)]
    assert 0 < kept[0] < kept[1] / 3
    pairs = candidate_pairs((8, 2))
    for one, other in zip(profile_layer(codes, 1, pairs), profile_layer(values, 1, pairs), strict=True):
        assert one.kl == other.kl
        for name in ("key_error", "value_error", "score_error", "output_error"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)


def test_attention_in_two_parts_is_attention():
    generator = torch.Generator().manual_seed(0)
    rows, key, value = (torch.randn(2, 3, size, 8, generator=generator, dtype=torch.float32) for size in (10, 50, 50))
    visible = torch.rand(10, 50, generator=generator) < 0.5
    visible[:, :30] = True
    visible[:, 49] = True
    whole = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=visible, scale=0.3)
    parts = [
        plain_attention(rows, key[:, :, part], value[:, :, part], visible[:, part], 0.3)
        for part in (slice(0, 30), slice(30, 50))
    ]
    torch.testing.assert_close(joined(*parts), whole, rtol=1e-5, atol=1e-6)


def test_layers_of_a_policy_may_be_full_in_front(monkeypatch):
    scheme = SCHEMES["per-token"]
    loaded = make_loaded(tiny_model("llama"))
    pair = LayerPrecision(pair=PrecisionPair.parse("K2V2"))
    policies = [
        KVPolicy(scheme=scheme, layers=tuple(pair if index >= first else LayerPrecision() for index in range(3)))
        for first in range(4)
    ]
    alone = Session(loaded, make_spec(scheme))
    expected = [alone.score(policy).kl.mean for policy in policies]
    _batched(monkeypatch, 4 * 3 * 17, way="gathered")
    found = [score.kl.mean for score in Session(loaded, make_spec(scheme)).score_many(policies)]
    assert found == pytest.approx(expected, rel=1e-9)
