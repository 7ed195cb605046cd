import pytest
import torch

from kernels.quantize.op import simulate
from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import InputError
from kvtuner_core.runtime.bank import Bank, LayerHistory, Side, simulation
from kvtuner_core.runtime.visibility import Layout


def _bank(scheme, *, capacity=10**9, prefix=21, suffix=6, window=None):
    generator = torch.Generator().manual_seed(0)
    keys, values, new = (torch.randn(2, 2, length, 16, generator=generator) for length in (prefix, prefix, suffix))
    layout = Layout.build(scheme, prefix=prefix, suffix=suffix, window=window)
    return Bank([LayerHistory(keys=keys, values=values)], [layout], capacity=capacity), torch.cat([keys, new], 2), new


def _precision(name):
    return LayerPrecision(pair=PrecisionPair.parse(name))


@pytest.mark.parametrize("scheme", [QuantScheme.per_token(), QuantScheme.kivi(group_size=4, residual_length=5)])
def test_each_span_holds_its_version_of_its_tokens(scheme):
    bank, exact, new = _bank(scheme)
    layout = bank.layout(0)
    found = bank.with_suffix(0, Side.KEY, _precision("K3V8"), new)
    assert found.shape == (2, 2, layout.slots, 16)
    granularity = scheme.key_granularity.value
    whole = layout.boundary.stop
    moved = simulate(exact[:, :, :whole], bits=3, granularity=granularity, group_size=4 if scheme.group_size else 16)
    for span, source in ((layout.packed, moved), (layout.exact, exact), (layout.boundary, moved)):
        assert torch.equal(found[:, :, span.slots], source[:, :, span.start : span.stop])


def test_heads_have_their_own_bits():
    bank, _, new = _bank(QuantScheme.per_token())
    heads = LayerPrecision(heads=(PrecisionPair.parse("K2V16"), PrecisionPair.parse("K16V4")))
    mixed = bank.with_suffix(0, Side.KEY, heads, new).clone()
    for head, name in enumerate(("K2V2", "K16V16")):
        uniform = bank.with_suffix(0, Side.KEY, _precision(name), new)
        assert torch.equal(mixed[:, head], uniform[:, head])


def test_the_capacity_bounds_what_is_kept():
    bank, _, new = _bank(QuantScheme.per_token())
    size = bank.with_suffix(0, Side.KEY, _precision("KV2"), new).nbytes
    small, _, _ = _bank(QuantScheme.per_token(), capacity=2 * size)
    for name in ("KV2", "KV4", "KV8", "KV2"):
        expected = bank.with_suffix(0, Side.KEY, _precision(name), new)
        assert torch.equal(small.with_suffix(0, Side.KEY, _precision(name), new), expected)
        assert small.bytes <= 2 * size


@pytest.mark.parametrize(("wanted", "on_cuda"), [("", "auto"), ("triton", "auto"), ("reference", "reference")])
def test_the_simulating_kernel_is_switched_off_with_the_others(monkeypatch, wanted, on_cuda):
    monkeypatch.setenv("KVTUNER_KERNELS", wanted)
    assert simulation(torch.device("cuda")) == on_cuda
    assert simulation(torch.device("cpu")) == "auto"


def test_a_wrong_choice_of_kernels_is_one_line_where_it_would_count(monkeypatch):
    monkeypatch.setenv("KVTUNER_KERNELS", "fast")
    with pytest.raises(InputError, match="must be reference or triton; got 'fast'"):
        simulation(torch.device("cuda"))
