"""Rank correlation by small cases."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from kvtuner_core.tuning import rank_correlation
from kvtuner_core.tuning.correlation import spearman
from tests.fakes.studies import sweep_result
from tests.tuning.builders import layer_profiles


def test_spearman_agrees_with_scipy_ties_included():
    first, second = [0.1, 0.4, 0.4, 0.9, 2.0, 0.2], [1.0, 3.0, 2.0, 2.0, 9.0, 0.5]
    assert spearman(first, second) == pytest.approx(float(stats.spearmanr(first, second).statistic))


def test_spearman_is_undefined_without_spread_or_numbers():
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spearman([1.0, 2.0], [1.0, 2.0]) is None
    assert spearman([1.0, 2.0, math.nan], [1.0, math.inf, 2.0]) is None


def test_agreement_within_and_disagreement_between_layers_are_told_apart():
    errors = {"KV8": 0.01, "KV4": 0.2, "KV2": 0.9}
    profiles = []
    for layer, scale in enumerate((1.0, 1.1, 1.2)):
        for item in layer_profiles({name: error * scale for name, error in errors.items()}, layer=layer):
            profiles.append(replace(item, kl=item.output_error / scale**4))
    result = rank_correlation(profiles)
    assert result.within == (1.0, 1.0, 1.0)
    assert result.layers == -1.0
    assert [(pair.name, value) for pair, value in result.between] == [("K8V8", -1.0), ("K4V4", -1.0), ("K2V2", -1.0)]
    assert result.overall is not None
    assert 0.0 < result.overall < 1.0


def test_a_sweep_gives_a_number_for_every_layer_and_pair():
    swept = sweep_result(layers=6)
    result = rank_correlation(swept.profiles)
    assert len(result.within) == 6
    assert len(result.between) == 9
