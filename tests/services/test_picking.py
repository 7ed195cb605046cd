import pytest

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.errors import InputError
from kvtuner_core.services.picking import GIB, Budget, bits_within, candidate_gib, pick
from tests.fakes.studies import search_result


def test_the_best_policy_within_the_bits_is_picked():
    result = search_result()
    for bits in (3.5, 4.0, 5.5, 20.0):
        chosen = pick(result, Budget(max_bits=bits))
        fitting = [candidate for candidate in result.front if candidate.effective_bits <= bits]
        assert chosen.kl.mean == min(candidate.kl.mean for candidate in fitting)
        assert chosen in result.front


def test_the_bound_itself_fits():
    result = search_result()
    for candidate in result.front:
        assert pick(result, Budget(max_bits=candidate.effective_bits)).effective_bits <= candidate.effective_bits


def test_memory_is_the_whole_caches_at_batch_and_context():
    result = search_result()
    middle = result.front[len(result.front) // 2]
    size = candidate_gib(result, middle, batch=8, context=32_768)
    layers = result.sweep.model.layers
    assert size * GIB == cache_bytes(middle.policy, layers, tokens=32_768, batch=8)
    chosen = pick(result, Budget(max_gib=size, batch=8, context=32_768))
    assert candidate_gib(result, chosen, batch=8, context=32_768) <= size
    assert chosen.kl.mean <= middle.kl.mean


def test_the_limit_in_bits_parts_what_fits_from_what_does_not():
    result = search_result()
    assert bits_within(result, Budget(max_bits=5.25)) == 5.25
    for candidate in result.front[:-1]:
        budget = Budget(max_gib=candidate_gib(result, candidate, batch=8), batch=8)
        limit = bits_within(result, budget)
        beyond = [item for item in result.front if item.effective_bits > limit]
        assert candidate.effective_bits < limit
        assert all(candidate_gib(result, item, batch=8) > budget.max_gib for item in beyond)
        assert len(beyond) == len([item for item in result.front if item.effective_bits > candidate.effective_bits])
    assert bits_within(result, Budget(max_gib=1e9)) is None, "All fit."
    assert bits_within(result, Budget(max_gib=1e-9)) is None, "None fits."


def test_both_bounds_hold_together():
    result = search_result()
    chosen = pick(result, Budget(max_bits=6, max_gib=0.05, batch=1, context=4096))
    assert chosen.effective_bits <= 6
    assert candidate_gib(result, chosen) <= 0.05


def test_when_nothing_fits_the_smallest_is_named():
    result = search_result()
    smallest = result.front[0]
    with pytest.raises(InputError, match=rf"max_bits 1\. .*{smallest.effective_bits:.3f} effective bits") as caught:
        pick(result, Budget(max_bits=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="max_gib 1e-06 at batch 2 and context 100"):
        pick(result, Budget(max_gib=1e-6, batch=2, context=100))


@pytest.mark.parametrize(
    "values",
    [{}, {"max_bits": 0}, {"max_bits": float("nan")}, {"max_gib": -1}, {"max_gib": float("inf")},
     {"max_bits": 4, "batch": 0}, {"max_bits": 4, "context": 0}],
)  # fmt: skip
def test_budgets_are_checked(values):
    with pytest.raises(InputError):
        Budget(**values)
