"""Constraints of a search, and the policies they leave."""

from itertools import product

import numpy as np
import pytest

from kvtuner_core.domain.strategy import Constraints, LayerPair, SearchStrategy
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.constraints import constrained, layer_space, single_layers
from tests.tuning.builders import SCHEME, TableScorer, geometry, policy_search, space

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
