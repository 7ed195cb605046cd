import numpy as np
import pytest
import torch
from torch import nn

from kvtuner_core.runtime import divergence as module
from kvtuner_core.runtime.divergence import Divergence, Reference, bootstrap, divergence, divergences


def _plain(p_logits, q_logits):
    p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy()


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1.0, 60.0])
@pytest.mark.parametrize("shape", [(1, 3), (37, 1009), (5, 300_000)])
def test_kl_is_the_plain_sum_in_float64(noise, shape):
    generator = torch.Generator().manual_seed(0)
    full = 5 * torch.randn(shape, generator=generator)
    moved = full + noise * torch.randn(shape, generator=generator)
    labels = torch.zeros(shape[0], dtype=torch.long)
    found = divergence(Reference.of(full, labels), moved)
    np.testing.assert_allclose(found.kl, _plain(full, moved), rtol=2e-3, atol=1e-10)
    assert (found.kl >= 0).all()


@pytest.mark.parametrize("gap", [60.0, 90.0, 104.0, 150.0, 1e4])
def test_what_had_no_probability_left_in_float32_may_become_the_likeliest(gap):
    full, moved = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    full[:, 7] = moved[:, 9] = gap
    moved[2] = full[2] + 0.01
    labels = torch.tensor([9, 9, 9])
    found = divergence(Reference.of(full, labels), moved)
    np.testing.assert_allclose(found.kl, _plain(full, moved), rtol=1e-6, atol=1e-5)
    each = [nn.functional.cross_entropy(logits.double(), labels, reduction="none") for logits in (moved, full)]
    np.testing.assert_allclose(found.nll_change, each[0] - each[1], rtol=1e-6, atol=1e-3)
    assert found.kl[2] < 1e-6


def test_a_token_that_is_ruled_out_is_infinitely_far():
    full = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    moved = full + 0.1
    moved[0, 3] = -torch.inf
    found = divergence(Reference.of(full, torch.tensor([5, 5])), moved)
    assert found.kl[0] == np.inf
    assert found.kl[1] < 1e-6
    assert np.isfinite(found.nll_change).all()


def test_a_row_that_is_far_changes_no_bit_of_others():
    full = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    moved = full + 0.1 * torch.randn(6, 200, generator=torch.Generator().manual_seed(1))
    reference = Reference.of(full, torch.arange(6))
    before = divergence(reference, moved)
    moved[3, 8] = 500.0
    after = divergence(reference, moved)
    assert after.kl[3] > 400
    others = np.arange(6) != 3
    np.testing.assert_array_equal(after.kl[others], before.kl[others])
    np.testing.assert_array_equal(after.nll_change[others], before.nll_change[others])


def test_agreement_and_likelihood_are_counted_per_token():
    full = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    moved = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    found = divergence(Reference.of(full, torch.tensor([-1, 1])), moved)
    assert found.agrees.tolist() == [True, False]
    assert np.isnan(found.nll_change[0])
    assert found.nll_change[1] == pytest.approx(2.0)


def test_sixteen_bit_logits_are_compared_in_float32():
    full = torch.randn(4, 50).to(torch.bfloat16)
    moved = (full.float() + 0.1 * torch.randn(4, 50)).to(torch.bfloat16)
    found = divergence(Reference.of(full, torch.full((4,), -1)), moved)
    np.testing.assert_allclose(found.kl, _plain(full, moved), rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 100])
def test_policies_are_compared_together_as_each_alone(monkeypatch, rows):
    generator = torch.Generator().manual_seed(0)
    full, moved = torch.randn(4, 40, generator=generator), torch.randn(5, 4, 40, generator=generator)
    reference = Reference.of(full, torch.tensor([3, -1, 0, 39]))
    alone = [divergence(reference, own) for own in moved]
    monkeypatch.setattr(module, "_CHUNK_VALUES", 40 * rows)
    parts = module._moved(reference, moved)
    assert [part.shape for part in parts] == [(5, 4)] * 4
    for policies in (1, 3, 5):
        found = divergences(reference, moved.flatten(0, 1), policies)
        assert len(found) == policies
        for index, one in enumerate(found):
            np.testing.assert_allclose(one.kl, alone[index].kl, rtol=1e-5)
            np.testing.assert_allclose(parts[0][index], alone[index].kl, rtol=1e-5)
            np.testing.assert_array_equal(one.agrees, alone[index].agrees)
            np.testing.assert_array_equal(parts[1][index], alone[index].agrees)
            np.testing.assert_allclose(one.nll_change, alone[index].nll_change, rtol=1e-5)
            np.testing.assert_array_equal(one.right, alone[index].right)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_number_of_policies_changes_no_bit(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    full, moved = torch.randn(24, 5000, generator=generator), torch.randn(7, 24, 5000, generator=generator)
    reference = Reference.of(full.to("cuda", dtype), torch.arange(24, device="cuda") - 1)
    logits = moved.to("cuda", dtype).flatten(0, 1)
    monkeypatch.setattr(module, "_CHUNK_VALUES_CUDA", 3 * 24 * 5000)
    whole = divergences(reference, logits, 7)
    for policies in (1, 2, 3, 4, 6):
        for one, other in zip(divergences(reference, logits, policies), whole, strict=False):
            np.testing.assert_array_equal(one.kl, other.kl)
            np.testing.assert_array_equal(one.nll_change, other.nll_change)
    cpu = divergence(Reference.of(full.to(dtype), torch.arange(24) - 1), moved[6].to(dtype))
    np.testing.assert_allclose(whole[6].kl, cpu.kl, rtol=1e-4)


@pytest.mark.parametrize("way", [module._centred, module._summed])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_of_scratch_may_lie_apart(monkeypatch, rows, way):
    generator = torch.Generator().manual_seed(0)
    full, moved = torch.randn(7, 45, generator=generator), torch.randn(5, 7, 45, generator=generator)
    moved[1] *= 100
    reference = Reference.of(full, torch.arange(7) - 1)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 5 * 45 * rows)
    monkeypatch.setattr(module, "_centred", way)
    close = module._moved(reference, moved)
    monkeypatch.setattr(module, "_stride", lambda vocabulary, _device: vocabulary + 3)
    apart = module._moved(reference, moved)
    for one, other in zip(close, apart, strict=True):
        np.testing.assert_allclose(one.double(), other.double(), rtol=1e-6)
    np.testing.assert_allclose(apart[0].flatten(), _plain(full, moved).flatten(), rtol=2e-3)


def test_rows_of_scratch_begin_at_aligned_addresses_on_a_gpu():
    like, scratch = torch.empty((3, 5, 50257), device="meta"), torch.empty(10**6, device="meta")
    rows = module._rows_of(scratch, like)
    assert rows.shape == like.shape
    assert all(step * rows.itemsize % 32 == 0 for step in rows.stride()[:2])
    assert module._rows_of(torch.empty(10**6), torch.empty((3, 5, 45))).is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("vocabulary", [5001, 50257])
@pytest.mark.parametrize("count", [24, 23])
def test_on_a_gpu_the_place_of_a_policy_changes_no_bit(monkeypatch, vocabulary, count):
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(count, vocabulary, generator=generator)
    moved = torch.randn(5, count, vocabulary, generator=generator)
    moved[1, ::3] *= 50
    reference = Reference.of(full.cuda(), torch.arange(count, device="cuda") - 1)
    monkeypatch.setattr(module, "_CHUNK_VALUES_CUDA", 5 * 9 * vocabulary)
    first = divergences(reference, moved.cuda().flatten(0, 1), 5)
    again = divergences(reference, moved.roll(2, 0).cuda().flatten(0, 1), 5)
    for one, other in zip(first, again[2:] + again[:2], strict=True):
        np.testing.assert_array_equal(one.kl, other.kl)
        np.testing.assert_array_equal(one.nll_change, other.nll_change)


def test_nothing_moves_from_itself():
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    none = Divergence.none(Reference.of(logits, torch.tensor([2, -1, 0])))
    assert none.kl.tolist() == [0.0, 0.0, 0.0]
    assert none.right.tolist() == [False, True, True]
    assert divergence(Reference.of(logits, torch.tensor([2, -1, 0])), logits).right.tolist() == [False, True, True]
    assert none.agrees.all()
    assert none.nll_change[0] == 0
    assert np.isnan(none.nll_change[1])


def test_the_interval_is_over_prompts_seeded_and_weighted_by_tokens():
    means, tokens = np.array([1.0, 2.0, 6.0]), np.array([10, 10, 20])
    found = bootstrap(means, tokens, seed=0)
    assert found.mean == pytest.approx(3.75)
    assert 1.0 <= found.low < found.mean < found.high <= 6.0
    assert bootstrap(means, tokens, seed=0) == found
    single = bootstrap(np.array([0.5]), np.array([7]), seed=0)
    assert (single.low, single.mean, single.high) == (0.5, 0.5, 0.5)
