import hashlib

import pytest

from kvtuner_core.errors import InputError
from kvtuner_core.services.recall import RecallSpec, characters, recall_questions

FILLER = [f"Text {n} begins. " + "It goes on, and on! Does it? " * 30 for n in range(6)]


def _made(filler=FILLER, **fields):
    return list(recall_questions(RecallSpec(**({"count": 3, "pairs": 8} | fields)), filler=filler))


def test_the_answer_is_the_code_of_the_name_that_is_asked_for():
    for question in _made():
        *facts, _, asked = question.prompt.split("\n")
        assert dict(fact.split(":") for fact in facts)[asked.removesuffix(":")] == question.answer
        assert len(facts) == 8
        assert len({fact.split(":")[0] for fact in facts}) == 8


def test_a_seed_makes_the_same_questions_on_every_machine_and_however_many_there_are():
    many = list(recall_questions(RecallSpec(count=5, pairs=32, seed=2026)))
    assert many[:2] == list(recall_questions(RecallSpec(count=2, pairs=32, seed=2026)))
    assert many != list(recall_questions(RecallSpec(count=5, pairs=32, seed=2027)))
    digest = hashlib.sha256("".join(question.digest for question in many).encode()).hexdigest()
    assert digest[:16] == "6a5911e30915bb32"


@pytest.mark.parametrize("length", [400, 1500, 4000])
def test_filler_brings_a_prompt_to_the_wanted_length(length):
    for question in _made(length=length):
        assert length - 60 < len(question.prompt) <= length
        assert sum(line.count(": ") for line in question.prompt.split("\n")) == 8
        assert question.prompt.split("\n")[:8] != _made(length=None)[0].prompt.split("\n")[:8]


def test_length_is_counted_as_the_caller_says():
    def words(texts):
        return [len(text.split()) for text in texts]

    spec = RecallSpec(count=1, pairs=4, length=200)
    question = next(recall_questions(spec, filler=FILLER, measure=words))
    assert 190 <= len(question.prompt.split()) <= 200
    assert characters(["ab", ""]) == [2, 0]


def test_beyond_32_pairs_names_share_words_but_are_different():
    question = _made(pairs=300)[0]
    names = [line.split(":")[0] for line in question.prompt.split("\n") if ": " in line]
    assert len(set(names)) == 300


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"length": 100}, "longer than the wanted length"),
        ({"length": 50_000}, "filler text ends"),
        ({"length": 1000, "filler": ()}, "filler text ends"),
        ({"pairs": 0}, "pairs must be from 1"),
        ({"count": 0}, "count must be from 1"),
        ({"length": 0}, "length must be from 1"),
    ],
)
def test_what_cannot_be_made_is_refused(fields, rule):
    with pytest.raises(InputError, match=rule):
        _made(**fields)
