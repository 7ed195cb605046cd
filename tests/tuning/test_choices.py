"""Choices against counting by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import InputError
from kvtuner_core.tuning.choices import Choices
from tests.tuning.builders import SCHEME, geometry, space

SPACE = space([((0, 2), "KV8 K8V4 KV4 KV2"), ((1,), "KV8 KV2"), ((3,), "K16V16 K4V2 KV2")])


def test_a_choice_is_one_pair_per_group():
    choices = Choices(SPACE, SCHEME, geometry(4))
    assert choices.sizes == (4, 2, 3)
    policy = choices.policy((1, 0, 2))
    assert [layer.name for layer in policy.layers] == ["K8V4", "K8V8", "K8V4", "K2V2"]
    assert choices.bits((1, 0, 2)) == effective_bits(policy, geometry(4))
    assert [choices.policy(choice).name for choice in choices.uniform()] == ["K2V2"]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([None, 4.3, 5.0, 6.25, 9.0]), st.integers(0, 5))
def test_all_that_fits_is_listed_once_and_narrowing_reaches_it(max_bits, seed):
    choices = Choices(SPACE, SCHEME, geometry(4), max_bits=max_bits)
    every = list(product(*(range(size) for size in choices.sizes)))
    expected = {choice for choice in every if max_bits is None or choices.bits(choice) <= max_bits}
    listed = list(choices.all_fitting())
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    rng = np.random.default_rng(seed)
    assert all(choices.narrowed(choice, rng) in expected for choice in every)


def test_a_bound_hit_exactly_is_kept():
    one = space([((0,), "KV4 KV2")])
    bound = Choices(one, SCHEME, geometry(1)).bits((0,))
    assert Choices(one, SCHEME, geometry(1), max_bits=bound).fits((0,))


def test_pairs_are_ordered_by_their_bytes_in_this_geometry():
    # Values are four times as wide as keys, so K8V4 is the narrower of the two.
    one = space([((0,), "K8V4 K4V8")])
    choices = Choices(one, SCHEME, geometry(1, key_dim=32, value_dim=128))
    assert [choices.policy((index,)).name for index in (0, 1)] == ["K4V8", "K8V4"]
    kivi = Choices(one, QuantScheme.kivi(), geometry(1))
    assert kivi.bits((0,)) >= kivi.bits((1,))


def test_an_impossible_bound_names_the_smallest():
    smallest = Choices(SPACE, SCHEME, geometry(4)).bits((3, 1, 2))
    with pytest.raises(InputError, match=f"at least {smallest:.3f}") as caught:
        Choices(SPACE, SCHEME, geometry(4), max_bits=1.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="at least"):
        Choices(SPACE, SCHEME, geometry(4), max_bits=float("nan"))


def test_a_space_of_another_model_is_refused():
    with pytest.raises(InputError, match="each of the 5 layers"):
        Choices(SPACE, SCHEME, geometry(5))
