import math
from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import Interval, Measured
from kvtuner_core.domain.objective import Objective
from kvtuner_core.errors import InputError
from tests.fakes.measurements import score


@pytest.mark.parametrize("objective", Objective)
def test_every_objective_says_what_it_is(objective):
    assert objective.label
    assert objective.unit in objective.with_unit
    assert objective.worst > 0
    assert objective.loss(0.25) == pytest.approx(0.25 if objective.direction == "lower" else 0.75)


def test_a_score_always_holds_the_mean_kl_and_others_where_they_were_measured():
    plain = score(0.1)
    assert plain.measures(Objective.MEAN_KL)
    assert plain.interval(Objective.MEAN_KL) == plain.kl
    assert not plain.measures(Objective.P95_KL)
    with pytest.raises(InputError, match=r"before p95-kl was measured. Run the search again"):
        plain.interval(Objective.P95_KL)
    tail = Measured(
        objective=Objective.P95_KL, interval=Interval(mean=0.5, low=0.4, high=0.6), per_prompt=(0.5, 0.5, 0.5)
    )
    full = replace(plain, others=(tail,))
    assert full.loss(Objective.P95_KL) == 0.5
    broken = replace(tail, interval=Interval(mean=math.nan, low=math.nan, high=math.nan))
    assert replace(plain, others=(broken,)).loss(Objective.P95_KL) == math.inf
