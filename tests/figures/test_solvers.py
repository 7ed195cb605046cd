"""Several searches side by side."""

import json
from dataclasses import replace

from kvtuner_core.domain.strategy import SearchStrategy
from kvtuner_core.figures import solvers_figure, solvers_info
from tests.fakes.studies import search_result
from tests.figures.builders import axis_titles, trace

RESULTS = [
    replace(search_result(layers=8, evaluations=60, strategy=strategy), run=str(strategy))
    for strategy in (SearchStrategy.NSGA2, SearchStrategy.AUTO)
]


def test_the_best_comes_first_with_its_numbers():
    rows = solvers_info(RESULTS).rows()
    assert [row["Strategy"] for row in rows] == ["auto", "nsga2"]
    assert rows[0]["Hypervolume"] == round(RESULTS[1].hypervolume, 5)
    assert [row["Evaluations"] for row in rows] == [60, 60]


def test_a_line_per_search_on_evaluation_prompts():
    info = solvers_info(RESULTS)
    figure = solvers_figure(info)
    json.loads(figure.to_json())
    line = trace(figure, "auto, 60")
    assert list(line.y) == [item.evaluation.kl.mean for item in RESULTS[1].front]
    assert len(info.front_rows()) == sum(len(result.front) for result in RESULTS)
    assert set(trace(figure, "uniform policies").text) == {"K8V8", "K8V4", "K4V4", "K4V2", "K2V2"}
    assert all("bits" in title or "nats" in title for title in axis_titles(figure))


def test_a_strategy_that_ran_twice_has_one_line_and_two_rows():
    again = replace(RESULTS[0], run="again")
    info = solvers_info([*RESULTS, again])
    assert [front.label for front in info.fronts] == ["auto, 60", "nsga2, 60"]
    assert len(info.rows()) == 3


def test_nothing_to_compare_is_said():
    assert solvers_figure(solvers_info([])).layout.annotations[0].text == "No finished search"
