"""Constraints of a search, and the policies they leave."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.strategy import GIB, Constraints, LayerPair, MemoryBound, SearchStrategy
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.constraints import constrained, layer_space, single_layers
from kvtuner_core.tuning.guided import surrogate_front
from kvtuner_core.tuning.prediction import enumerated_front
from kvtuner_core.tuning.surrogate import Surrogate
from tests.tuning.builders import SCHEME, TableScorer, geometry, policy_search, space, table_profiles

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
SPACE = space([((0, 1), NAMES), ((2,), NAMES), ((3,), "KV8 KV4 KV2")])
WEIGHTS = (4.0, 1.0, 0.2, 1.0)


def _rules(*texts):
    return tuple(LayerPair.parse(text) for text in texts)


def test_pinned_and_forbidden_layers_leave_their_group():
    found = constrained(SPACE, Constraints(pinned=_rules("1:K8V4"), forbidden=_rules("2:KV8", "2:KV2")))
    by_layers = {group.layers: [pair.name for pair in group.pairs] for group in found.groups}
    assert by_layers == {
        (0,): ["K8V8", "K8V4", "K4V4", "K4V2", "K2V2"],
        (1,): ["K8V4"],
        (2,): ["K8V4", "K4V4", "K4V2"],
        (3,): ["K8V8", "K4V4", "K2V2"],
    }
    assert constrained(SPACE, Constraints()) == SPACE


def test_layers_can_choose_alone():
    assert [group.layers for group in single_layers(SPACE).groups] == [(0,), (1,), (2,), (3,)]
    assert [len(group.pairs) for group in single_layers(SPACE).groups] == [5, 5, 5, 3]
    assert [len(group.pairs) for group in layer_space(SPACE).groups] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(pinned=_rules("4:KV8")), "from 0 to 3; got 4:K8V8"),
        (Constraints(forbidden=_rules("9:KV8")), "from 0 to 3"),
        (Constraints(pinned=_rules("0:KV3")), "one that was swept"),
        (Constraints(pinned=_rules("0:KV8", "0:KV4")), "pinned to one pair"),
        (Constraints(forbidden=_rules("3:KV8", "3:KV4", "3:KV2")), "layer 3 has only K8V8, K4V4, K2V2"),
    ],
)
def test_rules_that_cannot_hold_are_refused(constraints, message):
    with pytest.raises(InputError, match=message):
        constrained(SPACE, constraints)


@pytest.mark.parametrize("max_bits", [None, 4.5, 5.2])
@pytest.mark.parametrize("max_pairs", [1, 2, 3])
def test_choices_with_few_pairs_are_those_of_enumeration(max_pairs, max_bits):
    choices = Choices(SPACE, SCHEME, geometry(4), max_bits=max_bits, max_pairs=max_pairs)
    every = list(product(*(range(size) for size in choices.sizes)))

    def fits(choice):
        used = {layer.pair for layer in choices.policy(choice).layers}
        return len(used) <= max_pairs and (max_bits is None or choices.bits(choice) <= max_bits)

    expected = {choice for choice in every if fits(choice)}
    listed = list(choices.all_fitting())
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    rng = np.random.default_rng(0)
    assert all(choices.narrowed(choice, rng) in expected for choice in every)
    assert {choice for choice in every if choices.fits(choice)} == expected


def test_bounds_that_leave_nothing_are_refused():
    pinned = constrained(SPACE, Constraints(pinned=_rules("0:KV8", "1:KV4", "2:KV2")))
    with pytest.raises(InputError, match="2 different pairs"):
        Choices(pinned, SCHEME, geometry(4), max_pairs=2)
    with pytest.raises(InputError, match="max_pairs must be from 1"):
        Choices(SPACE, SCHEME, geometry(4), max_pairs=0)


@pytest.mark.parametrize("strategy", list(SearchStrategy))
def test_every_strategy_keeps_to_the_constraints(strategy):
    constraints = Constraints(max_pairs=2, pinned=_rules("0:K8V4"), forbidden=_rules("2:KV2", "3:K8V4"))
    search = policy_search(
        SPACE, WEIGHTS, strategy=strategy, evaluations=12, population=6, constraints=constraints, max_bits=6.0
    )
    if strategy is SearchStrategy.UNIFORM:
        # Layer 0 is pinned to the pair that layer 3 may not have.
        with pytest.raises(InputError, match="uniform has none"):
            list(search.candidates(TableScorer(WEIGHTS)))
        return
    found = [item.policy for item in search.candidates(TableScorer(WEIGHTS))]
    assert found
    for policy in found:
        names = [layer.name for layer in policy.layers]
        assert names[0] == "K8V4"
        assert names[2] != "K2V2"
        assert names[3] != "K8V4"
        assert len(set(names)) <= 2
        assert policy.nominal_bits + 0.5 <= 6.0


SLIDING = tuple(replace(shape, sliding_window=40 if layer % 2 else None) for layer, shape in enumerate(geometry(6)))
BOUNDED = {
    "per-token": (QuantScheme.per_token(), geometry(6)),
    "windows": (QuantScheme.kivi(residual_length=40, sink_length=3), geometry(6)),
    "sliding": (QuantScheme.per_token(sink_length=2), SLIDING),
    "sliding, groups, share": (QuantScheme.kivi(residual_length=0, residual_share=0.1), SLIDING),
}
OPEN = space([((layer,), "K16V16 KV8 K8V4 KV4 K4V2 KV2") for layer in range(6)])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("max_pairs", [None, 2])
@pytest.mark.parametrize("name", BOUNDED)
def test_the_exact_front_within_a_memory_bound_is_that_of_enumeration(name, max_pairs, share):
    scheme, shapes = BOUNDED[name]
    bound = _bound(OPEN, scheme, shapes, share=share)
    choices = Choices(OPEN, scheme, shapes, max_pairs=max_pairs, memory=bound)
    weights = np.random.default_rng(3).lognormal(0, 1, 6)
    names = " ".join(pair.name for pair in OPEN.candidates)
    model = Surrogate.additive(table_profiles(weights, names))
    found = [(bits, kl) for _, bits, kl in surrogate_front(choices, model)]
    expected = enumerated_front(choices, model)
    assert [bits for bits, _ in found] == pytest.approx([bits for bits, _ in expected])
    assert [kl for _, kl in found] == pytest.approx([kl for _, kl in expected])
    assert all(
        _bytes(choices.policy(choice), shapes) <= bound.max_bytes for choice, _, _ in surrogate_front(choices, model)
    )


def _bytes(policy, shapes, batch=3, context=333):
    return cache_bytes(policy, shapes, tokens=context, batch=batch)


def _bound(space_, scheme, shapes, *, share):
    """Memory between the smallest and the largest policy's, to the byte."""
    free = Choices(space_, scheme, shapes)
    ends = [_bytes(free.policy(choice), shapes) for choice in (free.narrowest, (0,) * len(free.sizes))]
    return MemoryBound(max_gib=round(ends[0] + share * (ends[1] - ends[0])) / GIB, batch=3, context=333)


@pytest.mark.parametrize("name", BOUNDED)
def test_choices_within_a_memory_bound_are_those_of_enumeration(name):
    scheme, shapes = BOUNDED[name]
    small = space([((0, 1, 2), "K16V16 KV8 KV4 KV2"), ((3,), "K16V16 KV8 KV2"), ((4, 5), "K16V16 K8V4 KV2")])
    bound = _bound(small, scheme, shapes, share=0.4)
    choices = Choices(small, scheme, shapes, max_bits=9.0, memory=bound)
    every = list(product(*(range(size) for size in choices.sizes)))
    expected = {
        choice
        for choice in every
        if choices.bits(choice) <= 9.0 and _bytes(choices.policy(choice), shapes) <= bound.max_bytes
    }
    assert 0 < len(expected) < len(every)
    assert set(choices.all_fitting()) == expected == {choice for choice in every if choices.fits(choice)}
    rng = np.random.default_rng(0)
    assert all(choices.narrowed(choice, rng) in expected for choice in every)


@pytest.mark.parametrize("strategy", list(SearchStrategy))
def test_every_strategy_keeps_to_a_memory_bound(strategy):
    bound = MemoryBound(max_gib=4 * 2 * 128 * 5 / 8 * 100 * 2 / GIB, batch=2, context=100)
    search = policy_search(
        SPACE, WEIGHTS, strategy=strategy, evaluations=12, population=6, constraints=Constraints(memory=bound)
    )
    found = [item.policy for item in search.candidates(TableScorer(WEIGHTS))]
    assert found
    assert all(_bytes(policy, geometry(4), batch=2, context=100) <= bound.max_bytes for policy in found)


def test_the_least_memory_is_said_where_nothing_fits():
    least = 4 * 2 * 128 * 2.5 / 8 * 8192
    with pytest.raises(
        InputError, match=r"max_gib must be at least 0.0025, .* at batch 1 x 8,192 tokens; got 0.001"
    ) as error:
        Choices(SPACE, SCHEME, geometry(4), memory=MemoryBound(max_gib=0.001))
    assert least / GIB <= 0.0025
    assert "\n" not in str(error.value)
    Choices(SPACE, SCHEME, geometry(4), memory=MemoryBound(max_gib=0.0025))


def test_two_bounds_that_do_not_go_together_are_refused():
    scheme, shapes = BOUNDED["per-token"]
    with pytest.raises(InputError, match="max_bits must be at least"):
        Choices(OPEN, scheme, shapes, max_bits=2.0, memory=MemoryBound(max_gib=1.0))


@pytest.mark.parametrize("values", [{"max_gib": 0}, {"max_gib": float("nan")}, {"max_gib": 1, "batch": 0},
                                    {"max_gib": 1, "context": 1.5}])  # fmt: skip
def test_a_memory_bound_checks_itself(values):
    with pytest.raises(InputError, match=list(values)[-1]):
        MemoryBound(**values)
