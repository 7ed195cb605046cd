from dataclasses import replace

import pytest

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import InputError, PromptError
from kvtuner_core.services.evaluating import EvaluationRequest, evaluate
from kvtuner_core.services.policies import choose_policy
from tests.services.drive import drive


@pytest.fixture
def request_(tiny):
    return EvaluationRequest(
        model=ModelSpec(reference=str(tiny)),
        policy=choose_policy("K4V2", QuantScheme.per_token()),
        limit=3,
        prefix_tokens=48,
        suffix_tokens=8,
    )


def test_a_policy_is_measured_once(ws, request_):
    _, first = drive(evaluate(ws, request_))
    assert first.policy.name == "K4V2"
    assert (first.score.prompts, first.score.tokens) == (3, 24)
    assert first.score.kl.low <= first.score.kl.mean <= first.score.kl.high
    assert (first.nominal_bits, first.effective_bits) == (3, 5)
    assert not first.reused
    seen, second = drive(evaluate(ws, request_))
    assert second.reused
    assert second.score == first.score
    assert seen[-1].reused == 1
    assert ws.compute.scores == 1


def test_without_a_policy_nothing_is_lost(ws, request_):
    _, full = drive(evaluate(ws, replace(request_, policy=choose_policy("full"))))
    assert full.score.kl.mean == pytest.approx(0, abs=1e-6)
    assert full.effective_bits == 16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prefix_tokens": 0}, InputError, "prefix_tokens"),
        ({"suffix_tokens": 0}, InputError, "suffix_tokens"),
        ({"seed": -1}, InputError, "seed"),
        ({"limit": 0}, PromptError, "limit"),
        ({"prompts": "nothing"}, PromptError, "nothing"),
    ],
)
def test_what_does_not_fit_is_refused(ws, request_, changes, error, message):
    with pytest.raises(error, match=message):
        drive(evaluate(ws, replace(request_, **changes)))
    assert not ws.compute.tasks
