"""Health checks on studies made to be healthy or not."""

from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.strategy import Constraints, LayerPair
from kvtuner_core.domain.study import Candidate
from kvtuner_core.tuning.checks import distinguishable, health_checks, overfit
from tests.fakes.studies import search_result
from tests.tuning.builders import score


def _checks(result):
    return {check.name: check for check in health_checks(result)}


def _with_front(result, change):
    return replace(result, front=tuple(change(item) for item in result.front))


def _evaluated(item: Candidate, **changes) -> Candidate:
    return replace(item, evaluation=replace(item.evaluation, **changes))


@pytest.fixture(scope="module")
def study():
    return search_result(evaluations=60)


def test_a_sound_study_has_nothing_to_look_at(study):
    found = _checks(study)
    assert set(found) == {"edge of the space", "tokens", "prompts", "overfit", "prefill", "window"}
    assert found["edge of the space"].good
    assert found["tokens"].good
    assert "384 tokens of 12 evaluation prompts" in found["tokens"].text
    assert found["prompts"].good
    assert health_checks(replace(study, front=())) == ()


def test_wide_intervals_ask_for_more_tokens(study):
    wide = _with_front(
        study, lambda item: _evaluated(item, kl=Interval(mean=item.kl.mean, low=0.0, high=2 * item.kl.mean))
    )
    assert not _checks(wide)["tokens"].good
    assert "within 100%" in _checks(wide)["tokens"].text


def test_two_prompts_that_carry_the_result_are_named(study):
    carried = _with_front(study, lambda item: _evaluated(item, kl_per_prompt=(5.0, 4.0, *(0.1,) * 10)))
    assert not _checks(carried)["prompts"].good
    assert "90%" in _checks(carried)["prompts"].text
    few = _with_front(study, lambda item: _evaluated(item, kl_per_prompt=(1.0, 1.0), tokens_per_prompt=(8, 8)))
    assert "Only 2" in _checks(few)["prompts"].text


def test_a_front_that_only_holds_where_it_was_searched_is_overfit(study):
    worse = _with_front(
        study,
        lambda item: _evaluated(item, kl=Interval(mean=3 * item.calibration.kl.mean, low=0.0, high=9.0)),
    )
    found = overfit(worse)
    assert found.front_ratio == pytest.approx(3.0)
    assert found.excess > 1.2
    assert not _checks(worse)["overfit"].good
    turned = _with_front(
        study,
        lambda item: _evaluated(item, kl=Interval(mean=1 / item.calibration.kl.mean, low=0.0, high=9.0)),
    )
    assert overfit(turned).rank_correlation < 0
    assert overfit(turned).beaten == len(turned.front) - 1, "Only the narrowest is now on the front."


def test_an_edge_asks_for_other_bit_widths(study):
    lossy = _with_front(study, lambda item: _evaluated(item, kl=Interval(mean=0.5, low=0.4, high=0.6)))
    assert "sweep more bits than 8" in _checks(lossy)["edge of the space"].text
    for bounds in (
        {"max_bits": 5.0},
        {"constraints": Constraints(max_pairs=2)},
        {"constraints": Constraints(forbidden=(LayerPair.parse("0:K8V8"),))},
    ):
        bounded = replace(lossy, spec=replace(lossy.spec, **bounds))
        assert _checks(bounded)["edge of the space"].good, "The search was told to stay narrow."
    exact = replace(lossy, spec=replace(lossy.spec, sweep=replace(lossy.spec.sweep, bits=(4, 8, 16))))
    assert _checks(exact)["edge of the space"].good, "There is nothing above 16 bits."
    easy = _with_front(study, lambda item: _evaluated(item, kl=Interval(mean=1e-4, low=0.0, high=1e-3)))
    wide = replace(easy, spec=replace(easy.spec, sweep=replace(easy.spec.sweep, bits=(4, 8))))
    narrowest = next(item for item in study.baselines if item.policy.name == "K4V4")
    wide = replace(wide, front=(_evaluated(narrowest, kl=Interval(mean=1e-3, low=0.0, high=1e-2)), *easy.front))
    assert "sweep fewer bits than 4" in _checks(wide)["edge of the space"].text


def test_a_window_shows_what_it_holds(study):
    scheme = QuantScheme.kivi()
    windowed = replace(study, spec=replace(study.spec, sweep=replace(study.spec.sweep, scheme=scheme)))
    windowed = _with_front(windowed, lambda item: replace(item, policy=replace(item.policy, scheme=scheme)))
    assert "bits per number at 512 tokens" in _checks(windowed)["window"].text


def test_policies_differ_where_the_same_prompts_say_so():
    base = replace(score(0.1), kl_per_prompt=(0.01, 0.1, 0.5, 0.02), tokens_per_prompt=(8, 8, 8, 8))
    bit_worse = replace(base, kl_per_prompt=tuple(1.1 * kl for kl in base.kl_per_prompt))
    mixed = replace(base, kl_per_prompt=(0.02, 0.09, 0.45, 0.09))
    assert distinguishable(base, bit_worse), "Worse on every prompt, though the intervals overlap."
    assert not distinguishable(base, mixed)
    assert not distinguishable(base, base)
    apart = replace(score(0.1), tokens_per_prompt=(9,))
    assert not distinguishable(score(0.1), apart)
    assert distinguishable(score(0.1), replace(score(0.2), tokens_per_prompt=(9,)))
