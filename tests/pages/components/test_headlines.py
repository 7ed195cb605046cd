from dataclasses import replace

from pages.components import headlines
from tests.fakes.studies import search_result


def test_the_gain_is_measured_at_the_baselines_memory_and_quality():
    result = search_result()
    found = headlines.gain(result)
    assert found is not None
    assert found.baseline.policy.name == "K4V4"
    assert found.same_memory is not None
    assert found.same_memory.effective_bits <= found.baseline.effective_bits
    assert found.same_quality is not None
    assert found.same_quality.kl.mean <= found.baseline.kl.mean


def test_without_the_baseline_there_is_no_gain():
    assert headlines.gain(replace(search_result(), baselines=())) is None


def test_nothing_fits_a_tiny_budget():
    assert headlines.within(search_result(), 0.1) is None
