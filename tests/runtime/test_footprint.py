from dataclasses import replace

import pytest
import torch

from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import ComputeError
from kvtuner_core.runtime import footprint
from kvtuner_core.runtime.bank import Storage
from kvtuner_core.runtime.footprint import plan_memory
from kvtuner_core.runtime.prompts import CutPrompt
from tests.fakes.models import tiny_model
from tests.runtime.test_session import make_loaded

GIB = 2**30


def _prompts(count, prefix, suffix=16):
    return [
        CutPrompt(index=index, prefix=(1,) * prefix, suffix=(1,) * suffix, following=None) for index in range(count)
    ]


def _plan(monkeypatch, prompts, *, free, host=64 * GIB, device="cuda"):
    loaded = replace(make_loaded(tiny_model("llama")), device=torch.device(device))
    monkeypatch.setattr(footprint, "device_memory", lambda _device: (free, free))
    monkeypatch.setattr(footprint.psutil, "virtual_memory", lambda: type("Memory", (), {"available": host}))
    return plan_memory(loaded, prompts, QuantScheme.per_token())


def test_what_fits_is_kept_as_values(monkeypatch):
    plan = _plan(monkeypatch, _prompts(4, 512), free=20 * GIB)
    assert (plan.storage, plan.on_host) == (Storage.VALUES, False)
    assert plan.pass_rows > 1
    assert sum(size for _, size in plan.needed) <= plan.free


def test_layers_of_as_many_batches_are_captured_as_have_room_beside_what_is_kept(monkeypatch):
    prompts = _prompts(4, 512)
    plans = [_plan(monkeypatch, prompts, free=free * GIB) for free in (2, 3, 8, 16)]
    assert [plan.storage for plan in plans] == [Storage.VALUES] * 4
    counts = [plan.graph_batches for plan in plans]
    assert counts[0] == plans[0].graph_bytes == 0
    assert 0 < counts[1] < counts[2] < counts[3]
    for plan in plans[1:]:
        kept = sum(size for name, size in plan.needed if "captured" not in name)
        assert (
            kept + plan.graph_batches * plan.graph_bytes
            <= 0.9 * plan.free
            < kept + (plan.graph_batches + 1) * plan.graph_bytes
        )
        assert plan.pass_bytes == dict(plan.needed)["one pass"]
    assert _plan(monkeypatch, prompts, free=16 * GIB, device="cpu").graph_batches == 0


def test_less_room_keeps_codes_then_spills_the_exact_prefixes_then_drops_and_only_then_refuses(monkeypatch):
    # 32,768 prompts' tokens of 3 x 2 x 32 float64 scalars: 1.5 KiB a token.
    prompts = _prompts(64, 32_768)
    exact = 64 * 32_768 * 3 * 2 * 32 * 8
    seen = [(free, _outcome(monkeypatch, prompts, free * GIB)) for free in (64, 16, 8, 6, 5, 4, 1)]
    kinds = [kind for _, kind in seen]
    assert exact == 3 * GIB
    assert kinds[0] == (Storage.VALUES, False)
    assert kinds[-1] == "refused"
    assert [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]] == [
        (Storage.VALUES, False),
        (Storage.CODES, False),
        (Storage.CODES, True),
        "refused",
    ]


def _outcome(monkeypatch, prompts, free):
    try:
        plan = _plan(monkeypatch, prompts, free=free)
    except ComputeError:
        return "refused"
    assert sum(size for _, size in plan.needed) <= free
    return plan.storage, plan.on_host


def test_a_host_without_room_refuses_in_one_line_that_says_what_to_do(monkeypatch):
    with pytest.raises(ComputeError, match=r"prompts' cache needs 3.0 GiB; 0.9 GiB are free on cpu. Use fewer prompts"):
        _plan(monkeypatch, _prompts(64, 32_768), free=5 * GIB, host=GIB)
    with pytest.raises(ComputeError, match=r"needs .* GiB; 1.0 GiB are free on cpu. Use fewer prompts or a lower"):
        _plan(monkeypatch, _prompts(64, 32_768), free=GIB, device="cpu")


def test_long_prompts_are_scored_in_small_batches(monkeypatch):
    plan = _plan(monkeypatch, _prompts(64, 32_768), free=16 * GIB)
    assert 32_768 < plan.batch_tokens < 64 * 32_768
    alone = _plan(monkeypatch, _prompts(1, 400_000), free=8 * GIB)
    assert alone.batch_tokens >= 400_000
