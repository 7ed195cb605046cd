"""The front with pairwise terms against enumeration, and what it brings to a search."""

from itertools import product

import numpy as np
import pytest

from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.tuning import hypervolume
from kvtuner_core.tuning.choices import Choices
from kvtuner_core.tuning.front import dominated_share
from kvtuner_core.tuning.guided import surrogate_front
from kvtuner_core.tuning.surrogate import Surrogate
from tests.tuning.builders import SCHEME, TableScorer, geometry, policy_search, score, space, table_profiles

NAMES = "KV8 K8V4 KV4 K4V2 KV2"
WEIGHTS = tuple(float(weight) for weight in np.random.default_rng(5).lognormal(0.0, 1.0, 9))
GROUPS = space([((0, 1), NAMES), ((2,), NAMES), ((3, 5), NAMES), ((4,), "KV8 KV4 KV2"), ((6, 7, 8), NAMES)])
MODEL = Surrogate.additive(table_profiles(WEIGHTS, NAMES))


def _coupled(seed, size=0.6):
    drawn = np.random.default_rng(seed).normal(0.2, size, (9, 9))
    coupling = np.triu(drawn, 1) + np.triu(drawn, 1).T
    return Surrogate(pairs=MODEL.pairs, isolated=MODEL.isolated, factors=MODEL.factors, coupling=coupling)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounds", [{}, {"max_bits": 5.0}, {"max_pairs": 2}], ids=str)
def test_the_front_is_nearly_that_of_enumeration_and_predicted_exactly(seed, bounds):
    model = _coupled(seed)
    choices = Choices(GROUPS, SCHEME, geometry(9), **bounds)
    front = surrogate_front(choices, model)
    every = [choice for choice in product(*(range(size) for size in choices.sizes)) if choices.fits(choice)]
    best = dominated_share((choices.bits(choice), model.predict(choices.policy(choice))) for choice in every)
    assert dominated_share((bits, kl) for _, bits, kl in front) >= 0.999 * best
    for choice, bits, kl in front:
        assert choices.fits(choice)
        assert bits == pytest.approx(choices.bits(choice))
        assert kl == pytest.approx(model.predict(choices.policy(choice)))
    losses = [kl for _, _, kl in front]
    assert losses == sorted(losses, reverse=True)


def test_no_terms_is_the_exact_front():
    choices = Choices(GROUPS, SCHEME, geometry(9))
    zero = Surrogate(pairs=MODEL.pairs, isolated=MODEL.isolated, factors=MODEL.factors, coupling=np.zeros((9, 9)))
    exact = surrogate_front(choices, MODEL)
    assert [item[1:] for item in surrogate_front(choices, zero)] == [pytest.approx(item[1:]) for item in exact]


class CoupledScorer(TableScorer):
    """Layers whose neighbours make things worse, or better, by much."""

    def score(self, policy):
        self.asked.append(tuple(layer.name for layer in policy.layers))
        return score(TRUTH.predict(policy))


LAYERS = 16
LONG = tuple(float(weight) for weight in np.random.default_rng(7).lognormal(-1.5, 1.2, LAYERS))
SEPARATE = space([((layer,), NAMES) for layer in range(LAYERS)])
ALONE = Surrogate.additive(table_profiles(LONG, NAMES))
_NEAR = np.diag(np.where(np.arange(LAYERS - 1) % 3, 1.2, -1.1), 1)
TRUTH = Surrogate(pairs=ALONE.pairs, isolated=ALONE.isolated, factors=ALONE.factors, coupling=_NEAR + _NEAR.T)


@pytest.mark.parametrize("seed", [0, 1])
def test_where_neighbours_interact_auto_finds_more_than_the_additive_front(seed):
    volumes = {
        strategy: hypervolume(
            list(
                policy_search(SEPARATE, LONG, strategy=strategy, evaluations=100, seed=seed).candidates(
                    CoupledScorer(LONG)
                )
            )
        )
        for strategy in (SearchStrategy.AUTO, SearchStrategy.ADDITIVE, SearchStrategy.NSGA2_WARM)
    }
    assert volumes["auto"] > volumes["additive"]
    assert volumes["auto"] > volumes["nsga2-warm"]
