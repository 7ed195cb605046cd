"""Both computes with the real runtime and a tiny model."""

from dataclasses import replace

import pytest

from kvtuner_core.compute import DaskCompute, InlineCompute
from kvtuner_core.domain.model import DeviceChoice, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import EvaluationSpec, GenerateTask, InspectTask, ScoreTask, TokenEvent
from kvtuner_core.errors import ModelError
from tests.fakes.models import save_tiny

SCHEME = QuantScheme.per_token()


@pytest.mark.slow
def test_a_worker_answers_as_this_process_does(tmp_path):
    spec = ModelSpec(reference=str(save_tiny(tmp_path / "tiny")), device=DeviceChoice.CPU)
    texts = tuple(Prompt(text=f"{number} " + "quick brown foxes jump over lazy dogs. " * 4) for number in range(2))
    evaluation = EvaluationSpec(
        model=spec,
        prompts=PromptSet(name="foxes", role=PromptRole.USER, prompts=texts),
        scheme=SCHEME,
        prefix_tokens=48,
        suffix_tokens=8,
    )
    inline, dask = InlineCompute(cache_dir=tmp_path / "cache"), DaskCompute(cache_dir=tmp_path / "cache")
    layers = len(inline.run(InspectTask(model=spec)).info.layers)
    policy = KVPolicy.uniform("K4V2", layers=layers, scheme=SCHEME)
    score = ScoreTask(evaluation=evaluation, policy=policy)
    generate = GenerateTask(model=spec, policy=policy, prompt="quick", max_new_tokens=5)
    try:
        expected = inline.run(score)
        first = dask.run(score)
        assert replace(first, seconds=0.0) == replace(expected, seconds=0.0)
        events = []
        generation = dask.run(generate, emit=events.append)
        assert tuple(event.token for event in events if isinstance(event, TokenEvent)) == generation.token_ids
        with pytest.raises(ModelError):
            dask.run(InspectTask(model=ModelSpec(reference=str(tmp_path / "nothing here"))))
    finally:
        dask.close()
        inline.close()
