import pytest
import torch

from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme, Rotation
from kvtuner_core.runtime.bank import WIDTHS, Bank, LayerHistory, Side
from kvtuner_core.runtime.chosen import Choices
from kvtuner_core.runtime.visibility import Layout

NAMES = ("K2V4", "K16V3", "K8V16", "K2V4", "K16V16")


def _precisions(*names):
    return tuple(LayerPrecision(pair=PrecisionPair.parse(name)) for name in names)


def _bank(scheme, *, stacked, rows=2, capacity=10**9):
    generator = torch.Generator().manual_seed(0)
    shape = (rows, 2, 21, 16)
    history = LayerHistory(keys=torch.randn(shape, generator=generator), values=torch.randn(shape, generator=generator))
    layouts = [Layout.build(scheme, prefix=21, suffix=6, window=window) for window in (None, 9)]
    return Bank([history, history], layouts, capacity=capacity, stacked=stacked)


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme.per_token(),
        QuantScheme.kivi(group_size=4, residual_length=5),
        QuantScheme.per_token(sink_length=3, rotation=Rotation.KEYS),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_chosen_on_the_device_is_what_is_gathered(scheme, layer):
    policies = [_precisions(name, other) for name, other in zip(NAMES, NAMES[::-1], strict=True)]
    choices = Choices.of(policies, rows=2, device=torch.device("cpu"))
    suffix = torch.randn(len(policies) * 2, 2, 6, 16, generator=torch.Generator().manual_seed(1))
    stacked, plain = _bank(scheme, stacked=True), _bank(scheme, stacked=False)
    for side in Side:
        stacked.fill(layer, side, WIDTHS, suffix.device)
        found = stacked.chosen(layer, side, choices.at(layer, side), suffix)
        expected = plain.gathered(layer, side, [policy[layer] for policy in policies], suffix)
        assert torch.equal(found, expected)
        assert torch.equal(stacked.gathered(layer, side, [policy[layer] for policy in policies], suffix), expected)


def test_widths_are_those_that_occur():
    choices = Choices.of(
        [_precisions("K2V4", "KV16"), _precisions("K8V16", "KV16")], rows=3, device=torch.device("cpu")
    )
    assert choices.widths == (((2, 8), (4,)), ((), ()))
    assert [WIDTHS[place] for place in choices.places[0, 0]] == [2, 8]
    assert choices.bits[0, 1].tolist() == [4, 4, 4, 16, 16, 16]


def test_bits_per_head_are_no_choice():
    heads = LayerPrecision(heads=(PrecisionPair.parse("K2V2"), PrecisionPair.parse("K4V4")))
    assert Choices.of([(heads,)], rows=1, device=torch.device("cpu")) is None


def test_a_bank_is_stacked_only_where_every_width_has_room():
    scheme = QuantScheme.per_token()
    whole = _bank(scheme, stacked=True)
    for layer in (0, 1):
        for side in Side:
            whole.fill(layer, side, (2,), torch.device("cpu"))
    assert _bank(scheme, stacked=True, capacity=whole.bytes).stacked
    small = _bank(scheme, stacked=True, capacity=whole.bytes - 1)
    assert not small.stacked
    with pytest.raises(ValueError, match="places"):
        whole.chosen(0, Side.KEY, _nowhere(), torch.zeros(2, 2, 6, 16))


def _nowhere():
    choices = Choices.of([_precisions("K2V2")], rows=2, device=torch.device("cpu"))
    choice = choices.at(0, Side.KEY)
    return type(choice)(places=None, bits=choice.bits, widths=choice.widths)
