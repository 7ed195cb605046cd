"""Attention by products, against float64."""

import pytest
import torch

from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime import attending, blocked_attention, products
from kvtuner_core.runtime.attending import Mask, masked_attention
from kvtuner_core.runtime.blocked_attention import in_blocks
from kvtuner_core.runtime.products import hasten
from kvtuner_core.runtime.session import Session
from tests.fakes.models import tiny_model
from tests.runtime.test_session import make_loaded, make_spec

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch):
    """On any processor, at any size, and in blocks of a few rows."""
    monkeypatch.setattr(blocked_attention, "hastens", lambda: True)
    monkeypatch.setattr(blocked_attention, "_WORTH_CALLS", 1)
    monkeypatch.setattr(blocked_attention, "_SCORES_AT_ONCE", 250)


def _exact(query, key, value, visible, scaling):
    per_head = query.shape[1] // key.shape[1]
    key, value = (side.double().repeat_interleave(per_head, 1) for side in (key, value))
    scores = (query.double() @ key.mT * scaling).masked_fill_(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def _visible(suffix, slots, *, shared):
    visible = torch.rand((suffix, slots), generator=torch.Generator().manual_seed(1)) > 0.5
    visible[:, :shared] = True
    # Every query sees itself, whatever else.
    visible[range(suffix), range(slots - suffix, slots)] = True
    return visible


@pytest.mark.parametrize("shared", [0, 30, 63])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("sizes", [(16, 16), (24, 8)])
def test_it_is_attention_to_the_rounding_of_float32(shared, heads, sizes):
    torch.manual_seed(0)
    suffix, slots = 9, 72
    query = torch.randn(2, suffix, heads[0], sizes[0]).transpose(1, 2)
    key, value = torch.randn(2, heads[1], slots, sizes[0]), torch.randn(2, heads[1], slots, sizes[1])
    visible = _visible(suffix, slots, shared=shared)
    for scaling in (None, 0.7):
        found = masked_attention(
            torch.nn.Identity(), query, key, value, mask=Mask.of(visible), implementation="sdpa", scaling=scaling
        )
        exact = _exact(query, key, value, visible, sizes[0] ** -0.5 if scaling is None else scaling)
        assert found.shape == exact.shape
        assert float((found - exact).abs().amax()) < 2e-6


def test_views_are_read_as_they_are_seen():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, length, 2, 16).transpose(1, 2) for length in (5, 40, 40))
    visible = _visible(5, 40, shared=20)
    found = masked_attention(torch.nn.Identity(), query, key, value, mask=Mask.of(visible), implementation="sdpa")
    assert float((found - _exact(query, key, value, visible, 0.25)).abs().amax()) < 2e-6


def test_what_needs_a_gradient_or_another_format_is_left_to_torch(monkeypatch):
    rows, key, value = torch.randn(3, 1, 2, 8, 16)
    assert in_blocks(rows, key, value)
    assert not in_blocks(rows.double(), key.double(), value.double())
    wanting = rows.clone().requires_grad_()
    assert not in_blocks(wanting, key, value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not in_blocks(rows, key, value)
    with torch.no_grad():
        assert in_blocks(wanting, key, value)
    monkeypatch.setattr(blocked_attention, "_WORTH_CALLS", 65)
    assert not in_blocks(rows, key, value)


def test_a_mask_is_added_behind_the_slots_that_all_see():
    visible = torch.tensor([[True, True, True, False], [True, True, False, True]])
    mask = Mask.of(visible)
    infinity = float("inf")
    assert mask.added(2).tolist() == 2 * [[0, -infinity], [-infinity, 0]]
    assert mask.added(2) is mask.added(2)


def test_where_mkl_is_the_faster_one_nothing_changes(monkeypatch):
    monkeypatch.setattr(blocked_attention, "hastens", lambda: False)
    monkeypatch.setattr(attending, "blocked_attention", None)
    query, key = torch.randn(1, 2, 4, 16), torch.randn(1, 2, 12, 16)
    visible = _visible(4, 12, shared=8)
    found = masked_attention(torch.nn.Identity(), query, key, key, mask=Mask.of(visible), implementation="sdpa")
    assert torch.allclose(found.double(), _exact(query, key, key, visible, 0.25), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi"])
def test_a_score_has_the_same_bits_in_any_company(monkeypatch, family):
    monkeypatch.setattr(products, "hastens", lambda: True)
    monkeypatch.setattr("kvtuner_core.runtime.head.hastens", lambda: True)
    scheme = QuantScheme.kivi(group_size=4, residual_length=6)
    loaded = make_loaded(tiny_model(family), torch.float32)
    loaded.model.requires_grad_(False)
    hasten(loaded.model)
    session = Session(loaded, make_spec(scheme, suffix=9))
    policies = [KVPolicy.uniform(name, layers=3, scheme=scheme) for name in ("K8V4", "K4V2", "K2V2", "K4V8", "K8V2")]

    def numbers(scores):
        return [(score.kl, score.kl_per_prompt, score.nll_change, score.others) for score in scores]

    together = numbers(session.score_many(policies))
    assert all(kl.mean > 0 for kl, *_ in together)
    assert numbers(session.score_many(policies[::-1])) == together[::-1]
    assert numbers(Session(loaded, make_spec(scheme, suffix=9)).score_many(policies[3:4])) == together[3:4]


@pytest.fixture
def _threads():
    """The number of threads, which the test may change."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("suffix", "slots"), [(24, 120), (24, 536), (128, 640)])
def test_the_number_of_threads_changes_no_bit(monkeypatch, suffix, slots):
    monkeypatch.setattr(blocked_attention, "_SCORES_AT_ONCE", 1 << 21)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 64) for heads, length in ((9, suffix), (3, slots), (3, slots)))
    mask = Mask.of(_visible(suffix, slots, shared=slots - suffix))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(masked_attention(torch.nn.Identity(), query, key, value, mask=mask, implementation="sdpa"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
