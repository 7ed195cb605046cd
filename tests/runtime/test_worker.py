import dataclasses
import random
import threading

import pytest
import torch

from kvtuner_core.domain.metrics import PolicyScore
from kvtuner_core.domain.model import DeviceChoice, DtypeChoice, ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import candidate_pairs
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import (
    EvaluationSpec,
    GenerateTask,
    Generation,
    InspectTask,
    ModelReport,
    ProfileTask,
    ScoreTask,
    TokenEvent,
)
from kvtuner_core.errors import CancelledError, ComputeError, InputError, ModelError
from kvtuner_core.runtime import worker
from kvtuner_core.runtime.worker import Runtime
from tests.fakes.models import save_tiny
from tests.runtime.test_session import TEXTS, decoded_logits

SCHEME = QuantScheme.kivi(group_size=8, residual_length=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    return ModelSpec(reference=str(folder), device=DeviceChoice.CPU)


@pytest.fixture
def runtime(tmp_path):
    made = Runtime(cache_dir=tmp_path)
    yield made
    made.close()


def _evaluation(model, **fields):
    prompts = PromptSet(name="texts", role=PromptRole.USER, prompts=tuple(Prompt(text=text) for text in TEXTS))
    fields = {"scheme": SCHEME, "prefix_tokens": 50, "suffix_tokens": 10} | fields
    return EvaluationSpec(model=model, prompts=prompts, **fields)


def _score(model, name="K4V2", **fields):
    evaluation = _evaluation(model, **fields)
    return ScoreTask(evaluation=evaluation, policy=KVPolicy.uniform(name, layers=3, scheme=evaluation.scheme))


def test_each_task_has_its_answer(runtime, model):
    report = runtime.run(InspectTask(model=model))
    assert isinstance(report, ModelReport)
    assert report.provenance.device_type == "cpu"
    assert 0 < report.free_bytes < report.total_bytes
    score = runtime.run(_score(model))
    assert isinstance(score, PolicyScore)
    assert score.prompts == 3
    assert score.tokens == 30
    profiles = runtime.run(ProfileTask(evaluation=_evaluation(model), layer=1, pairs=candidate_pairs((2, 4))))
    assert [profile.pair.name for profile in profiles] == ["K4V4", "K4V2", "K2V4", "K2V2"]
    events = []
    task = GenerateTask(model=model, policy=None, prompt="hello", max_new_tokens=4)
    generation = runtime.run(task, emit=events.append)
    assert isinstance(generation, Generation)
    assert all(isinstance(event, TokenEvent) for event in events)
    assert len(events) == len(generation.token_ids) > 0


def test_a_model_is_loaded_once_and_sessions_are_reused(runtime, model, monkeypatch):
    loads, sessions = [], []
    load, session = worker.load, worker.Session
    monkeypatch.setattr(worker, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    monkeypatch.setattr(worker, "Session", lambda *args: sessions.append(args) or session(*args))
    for name, fields in (("K4V2", {}), ("KV2", {}), ("KV8", {"seed": 5}), ("KV4", {"suffix_tokens": 12}), ("KV4", {})):
        runtime.run(_score(model, name, **fields))
    assert (len(loads), len(sessions)) == (1, 2)
    runtime.run(_score(model, suffix_tokens=14))
    runtime.run(_score(model, suffix_tokens=12))
    assert len(sessions) == 4
    runtime.run(InspectTask(model=dataclasses.replace(model, dtype=DtypeChoice.BFLOAT16)))
    assert len(loads) == 2


def test_the_same_task_gives_the_same_numbers_in_another_worker(runtime, model, tmp_path):
    other = Runtime(cache_dir=tmp_path)
    first, second = (dataclasses.replace(one.run(_score(model)), seconds=0) for one in (runtime, other))
    assert first == second


def test_bfloat16_scores_are_near_those_of_float32(runtime, model):
    half = dataclasses.replace(model, dtype=DtypeChoice.BFLOAT16)
    full, rounded = (runtime.run(_score(spec, "KV2")) for spec in (model, half))
    assert rounded.kl.mean == pytest.approx(full.kl.mean, rel=0.3)
    assert rounded.cache_bytes < full.cache_bytes
    assert runtime.run(_score(half, "KV16")).kl.mean == 0


def test_a_policy_under_another_scheme_is_refused(runtime, model):
    task = _score(model)
    policy = KVPolicy.uniform("KV4", layers=3, scheme=QuantScheme.per_token())
    with pytest.raises(InputError, match="scheme"):
        runtime.run(dataclasses.replace(task, policy=policy))


def test_a_cancelled_task_does_not_begin(runtime, model):
    with pytest.raises(CancelledError):
        runtime.run(_score(model), cancelled=lambda: True)


def test_a_model_outside_the_roots_is_refused(tmp_path, model):
    with pytest.raises(ModelError, match="operator"):
        Runtime(cache_dir=tmp_path, roots=(tmp_path,)).run(InspectTask(model=model))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_running_out_of_memory_is_one_clear_line_and_not_the_end(runtime, model, monkeypatch, error):
    def exhaust(*_args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(worker, "Session", exhaust)
        with pytest.raises(ComputeError, match="fewer prompts") as caught:
            runtime.run(_score(model))
    assert "\n" not in str(caught.value)
    assert runtime.run(_score(model)).prompts == 3


def test_tasks_may_come_from_several_threads(runtime, model):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(runtime.run(_score(model)).kl)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [runtime.run(_score(model)).kl] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [DtypeChoice.FLOAT32, DtypeChoice.AUTO])
def test_a_gpu_gives_the_cpus_numbers(runtime, model, dtype, tmp_path):
    there = dataclasses.replace(model, device=DeviceChoice.CUDA, dtype=dtype)
    tolerance = 0.01 if dtype is DtypeChoice.FLOAT32 else 0.3
    cpu = Runtime(cache_dir=tmp_path)
    assert runtime.run(InspectTask(model=there)).provenance.device_type == "cuda"
    assert runtime.run(_score(there, "KV16")).kl.mean == 0
    for name in ("K4V2", "KV2"):
        expected = cpu.run(_score(model, name)).kl.mean
        assert runtime.run(_score(there, name)).kl.mean == pytest.approx(expected, rel=tolerance)
    found, expected = (
        one.run(ProfileTask(evaluation=_evaluation(spec), layer=1, pairs=candidate_pairs((2,))))[0]
        for one, spec in ((runtime, there), (cpu, model))
    )
    for name in ("key_error", "value_error", "score_error", "output_error", "kl"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=tolerance)
    policy = KVPolicy.uniform("K4V4", layers=3, scheme=SCHEME)
    task = GenerateTask(model=there, policy=policy, prompt="hello", max_new_tokens=8, temperature=1.0)
    assert len(runtime.run(task).token_ids) > 0


@pytest.mark.model
@pytest.mark.slow
def test_the_bundled_model_shows_the_published_order_and_decodes_as_it_is_scored(runtime):
    text = " ".join(f"In {1700 + 7 * i} the village of number {i * i % 97} counted its {i} wells." for i in range(40))
    spec = EvaluationSpec(
        model=ModelSpec(device=DeviceChoice.CPU),
        prompts=PromptSet(name="one", role=PromptRole.USER, prompts=(Prompt(text=text),)),
        scheme=QuantScheme.kivi(),
        prefix_tokens=200,
        suffix_tokens=16,
    )
    policies = {name: KVPolicy.uniform(name, layers=30, scheme=spec.scheme) for name in ("KV8", "KV4", "K4V2", "K2V4")}
    kl = {name: runtime.run(ScoreTask(evaluation=spec, policy=policy)).kl.mean for name, policy in policies.items()}
    assert list(kl.values()) == sorted(kl.values())
    assert kl["KV8"] < 0.01
    _assert_decodes_as_scored(runtime, spec, policies["K2V4"])
    draw = random.Random(3)
    for scheme in (
        spec.scheme,
        QuantScheme.per_token(group_size=32, residual_length=21, sink_length=5, symmetric=True),
    ):
        pairs = [draw.choice(candidate_pairs((16, 8, 4, 3, 2))) for _ in range(30)]
        policy = KVPolicy.from_pairs(pairs, scheme=scheme)
        _assert_decodes_as_scored(runtime, dataclasses.replace(spec, scheme=scheme), policy)


def _assert_decodes_as_scored(runtime, spec, policy):
    score = runtime.run(ScoreTask(evaluation=spec, policy=policy))
    session = runtime._session(spec)
    (prompt,) = session.prompts
    model = session.loaded.model
    full = decoded_logits(model, prompt, KVPolicy.uniform("KV16", layers=30, scheme=spec.scheme)).log_softmax(-1)
    moved = decoded_logits(model, prompt, policy).log_softmax(-1)
    assert (full.exp() * (full - moved)).sum(-1).mean().item() == pytest.approx(score.kl.mean, rel=0.05)
