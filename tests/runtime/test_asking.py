from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.questions import Question, TaskKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import AskTask, EvaluationSpec, GenerateTask
from kvtuner_core.errors import CancelledError, InputError, PolicyError
from kvtuner_core.runtime.asking import ask, count_tokens, matches
from kvtuner_core.runtime.cache import QuantizedKVCache
from kvtuner_core.runtime.generation import generate
from kvtuner_core.runtime.session import Session
from tests.fakes.models import FAMILIES, tiny_model
from tests.runtime.test_session import make_loaded as make_double

PROMPT = "amber fox: 31\nblue owl: 72\n\namber fox:"


def make_loaded(family="llama"):
    return make_double(tiny_model(family, eos_token_id=None))


def _policy(name, scheme=None):
    return KVPolicy.uniform(name, layers=3, scheme=scheme or QuantScheme.kivi(group_size=8, residual_length=8))


def _task(question, policy):
    return AskTask(model=ModelSpec(reference="tiny"), policy=policy, question=question)


def _recall(answer=" 31", **fields):
    return Question(kind=TaskKind.RECALL, prompt=PROMPT, answer=answer, **fields)


def _by_hand(loaded, policy, text):
    """NLL per token of ``text``, decoded token by token by the plain model from the packed prompt."""
    ids = loaded.tokenizer(PROMPT).input_ids
    gold = loaded.tokenizer(text, add_special_tokens=False).input_ids
    cache = DynamicCache() if policy is None else QuantizedKVCache(policy, loaded.model)
    total, token = 0.0, ids[-1]
    with torch.inference_mode():
        loaded.model(torch.tensor([ids[:-1]]), past_key_values=cache)
        for wanted in gold:
            logits = loaded.model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
            total -= float(logits.log_softmax(-1)[wanted])
            token = wanted
    return total / len(gold)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [None, "K4V2"])
def test_the_likelihood_is_that_of_decoding_from_the_packed_prompt(family, name):
    loaded = make_loaded(family)
    policy = None if name is None else _policy(name)
    reply = ask(loaded, _task(_recall(), policy))
    assert reply.nll == pytest.approx(_by_hand(loaded, policy, " 31"), rel=1e-9)
    assert reply.prompt_tokens == len(PROMPT) + 1


@pytest.fixture(scope="module")
def llama():
    return make_loaded()


def test_what_is_given_is_what_greedy_decoding_gives_and_bits_change_the_likelihood(llama):
    free = ask(llama, _task(_recall(max_new_tokens=6), None))
    told = GenerateTask(model=ModelSpec(reference="tiny"), policy=None, prompt=PROMPT, max_new_tokens=6, chat=False)
    assert free.given == generate(llama, told).text
    assert not free.correct
    right = ask(llama, _task(_recall(answer=free.given, max_new_tokens=6), None))
    assert right.correct
    nll = [ask(llama, _task(_recall(), _policy(name))).nll for name in ("K8V8", "K2V2")]
    full = ask(llama, _task(_recall(), None)).nll
    assert abs(nll[0] - full) < abs(nll[1] - full)


def test_the_first_answered_token_reads_the_quantised_prompt(llama):
    one = _recall(answer="3")
    assert ask(llama, _task(one, _policy("K2V2"))).nll != pytest.approx(ask(llama, _task(one, None)).nll, rel=1e-6)


def test_the_likeliest_choice_per_character_is_taken(llama):
    choices = (" a long way to go on", " 72", " b")
    likely = {text: _by_hand(llama, _policy("K4V2"), text) for text in choices}
    best = min(choices, key=likely.get)
    for answer in choices:
        question = Question(kind=TaskKind.MULTIPLE_CHOICE, prompt=PROMPT, answer=answer, choices=choices)
        reply = ask(llama, _task(question, _policy("K4V2")))
        # One token is one character here, so that per token and per character are the same.
        assert reply.given == best
        assert reply.correct == (answer == best)
        assert reply.nll == pytest.approx(likely[answer], rel=1e-9)


def test_a_generated_answer_ends_at_the_stop_text_and_the_solution_is_measured_whole(llama):
    long = ask(llama, _task(Question(kind=TaskKind.EXACT_MATCH, prompt=PROMPT, answer="7", max_new_tokens=20), None))
    stop = long.given[7:9]
    question = Question(
        kind=TaskKind.EXACT_MATCH, prompt=PROMPT, answer="7", solution=" 3 and 4 are 7", stop=stop, max_new_tokens=20
    )
    reply = ask(llama, _task(question, None))
    assert reply.given == long.given.split(stop)[0]
    assert reply.nll == pytest.approx(_by_hand(llama, None, " 3 and 4 are 7"), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "answer", "exact", "right"),
    [
        (" 48213", " 48213", True, True),
        (" 48213 and", " 48213", True, False),
        ("The answer is 1,250.", "1250", False, True),
        ("so 3 x 4 = 12.\nThe answer is 12.0", "12", False, True),
        ("12 apples, then 13", "12", False, False),
        ("nothing", "12", False, False),
        ("Paris", "Paris", False, True),
        ("It is Paris", "Paris", False, False),
        ("It is 5", "five 5", False, False),
    ],
)
def test_when_an_answer_is_right(given, answer, exact, right):
    assert matches(given, answer, exact=exact) is right


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"prompt": ""}, "at least 2 tokens"),
        ({"prompt": "x" * 520}, "512 positions"),
        ({"answer": "x" * 500}, "512 positions"),
        ({"kind": TaskKind.MULTIPLE_CHOICE, "choices": ("a", "")}, "got an empty one"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(llama, fields, rule):
    question = Question(**({"kind": TaskKind.RECALL, "prompt": PROMPT, "answer": "a"} | fields))
    with pytest.raises(InputError, match=rule):
        ask(llama, _task(question, None))


def test_a_policy_of_another_model_and_a_cancel_are_refused(llama):
    other = KVPolicy.uniform("KV4", layers=2, scheme=QuantScheme.per_token())
    with pytest.raises(PolicyError, match="one entry per cached layer"):
        ask(llama, _task(_recall(), other))
    with pytest.raises(CancelledError):
        ask(llama, _task(_recall(), None), cancelled=lambda: True)


def test_tokens_are_counted_without_special_ones(llama):
    assert count_tokens(llama, ("abc", "", "12")).counts == (3, 0, 2)


@pytest.mark.parametrize("name", ["K8V8", "K2V2"])
def test_teacher_forcing_sees_which_answers_greedy_decoding_gives(llama, name):
    policy = _policy(name, QuantScheme.per_token())
    prompts, missed = [], []
    for number in range(16):
        text = f"{number * 7919} names and codes, then {number}:"
        question = Question(kind=TaskKind.RECALL, prompt=text, answer="a", max_new_tokens=2)
        own = ask(llama, _task(question, policy)).given
        # A random model also writes halves of characters, which are no text.
        answer = own if len(own) == 2 and own.isascii() else "ab"
        prompts.append(Prompt(text=text[:-1], completion=text[-1] + answer))
        missed.append(float(not ask(llama, _task(replace(question, answer=answer), policy)).correct))
    spec = EvaluationSpec(
        model=ModelSpec(reference="tiny"),
        prompts=PromptSet(name="recall", role=PromptRole.USER, prompts=tuple(prompts)),
        scheme=policy.scheme,
        prefix_tokens=64,
        suffix_tokens=16,
    )
    found = Session(llama, spec).score(policy).measured(Objective.ANSWER_ERROR)
    assert found.per_prompt == tuple(missed)
    assert 0 < sum(missed) < len(missed), "Some are given and some are not."
