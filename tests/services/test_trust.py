from dataclasses import replace

from kvtuner_core.domain.strategy import Constraints, LayerPair, SearchStrategy
from kvtuner_core.services import trust
from kvtuner_core.services.searching import search
from kvtuner_core.services.studies import search_record
from kvtuner_core.services.work import run_here
from tests.services.drive import drive


def _stored(ws, spec):
    record = search_record(spec)
    return drive(run_here(ws, record, lambda run, cancelled: search(ws, spec, cancelled, run=run)))[1]


def test_searches_of_the_same_prompts_stand_side_by_side_and_share_scores(ws, search_spec):
    auto = _stored(ws, search_spec)
    scored = ws.compute.scores
    published = _stored(ws, replace(search_spec, strategy=SearchStrategy.NSGA2))
    assert ws.compute.scores - scored < len(published.candidates) + len(published.front), "Shared ones cost nothing."
    _stored(ws, replace(search_spec, max_bits=6.5))
    rows = trust.solvers(ws, auto)
    assert {row.run for row in rows} == {auto.run, published.run}
    assert {row.strategy: row.evaluations for row in rows} == {"auto": 14, "nsga2": 14}
    assert all(row.at_equal == row.hypervolume for row in rows)


def test_constraints_hold_on_the_live_model(ws, search_spec):
    rules = Constraints(max_pairs=2, pinned=(LayerPair.parse("0:K8V8"),), forbidden=(LayerPair.parse("1:K2V2"),))
    _, result = drive(search(ws, replace(search_spec, constraints=rules)))
    assert result.candidates
    for item in result.candidates:
        names = [layer.name for layer in item.policy.layers]
        assert names[0] == "K8V8"
        assert names[1] != "K2V2"
        assert len(set(names)) <= 2


def test_a_policy_is_alike_to_those_it_cannot_be_told_from(ws, search_spec):
    _, result = drive(search(ws, search_spec))
    by_name = {item.policy.name: item for item in result.baselines}
    assert not trust.differ(by_name["K8V8"], by_name["K8V8"])
    assert trust.differ(by_name["K8V8"], by_name["K2V2"])
    alike = trust.alike(by_name["K8V8"], (*result.front, *result.baselines))
    assert all(item.policy != by_name["K8V8"].policy for item in alike)
    assert by_name["K2V2"] not in alike
    assert trust.checks(result)
