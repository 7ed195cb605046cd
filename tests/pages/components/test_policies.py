from dataclasses import replace

from kvtuner_core.services.picking import Budget, pick
from pages.components import policies, trust
from tests.fakes.studies import search_result


def test_every_offered_policy_has_its_own_name_in_the_address():
    result = search_result()
    offered = policies.offered(result)
    assert len(offered) == len(result.front) + len(result.baselines)
    assert offered["K4V4"].policy.name == "K4V4"
    labels = policies.labels(result)
    assert set(labels) == set(offered)
    assert len(set(labels.values())) == len(labels)


def test_full_precision_is_said_in_words():
    full = policies.offered(search_result())["K16V16"]
    assert policies.name(full) == "full precision"


def test_the_table_states_memory_against_16_bits():
    result = search_result()
    offered = policies.offered(result)
    rows = policies.rows([offered["K16V16"], offered["K4V4"]], result, batch=2, context=1024)
    assert rows[0]["Of 16 bits (%)"] == 100
    assert 25 < rows[1]["Of 16 bits (%)"] < 35
    assert rows[0]["Cache (GiB)"] > rows[1]["Cache (GiB)"]


def test_the_picked_policy_is_held_against_the_best_uniform_one():
    result = search_result()
    picked = pick(result, Budget(max_bits=4.5))
    assert "%" in policies.against_uniform(picked, result, Budget(max_bits=4.5))
    assert policies.against_uniform(picked, result, Budget(max_bits=1.0)).startswith("No uniform policy")
    full = next(item for item in result.baselines if item.policy.is_full)
    assert policies.against_uniform(picked, replace(result, baselines=(full,)), Budget(max_bits=16)).startswith(
        "Uniform"
    )


def test_what_cannot_be_told_apart_is_said():
    result = search_result()
    uniform = next(item for item in result.baselines if item.policy.name == "K4V4")
    same = replace(uniform, policy=result.front[3].policy, effective_bits=result.front[3].effective_bits)
    low = tuple(0.9 * kl if place % 2 else 1.05 * kl for place, kl in enumerate(uniform.evaluation.kl_per_prompt))
    kl = replace(uniform.evaluation.kl, mean=0.99 * uniform.evaluation.kl.mean)
    same = replace(same, evaluation=replace(uniform.evaluation, kl=kl, kl_per_prompt=low))
    only = replace(result, baselines=(uniform,))
    assert policies.against_uniform(same, only, Budget(max_bits=8)).startswith("Not distinguishable")
    assert trust.same_as(result.front[-1], replace(result, front=(result.front[0], result.front[-1]))) == ""
    twin = replace(result.front[-1], policy=result.front[0].policy, effective_bits=3.0)
    assert "p" in trust.same_as(result.front[-1], replace(result, front=(twin, result.front[-1])))
