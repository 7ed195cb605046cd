"""The shipped texts: what may be read for what shares nothing, and the sets can be made again."""

import json
from itertools import combinations

import pytest

from kvtuner_core.domain.questions import TaskKind
from kvtuner_core.services.prompts import PROMPT_FOLDER
from kvtuner_core.services.question_files import TASK_FOLDER, shipped_questions
from tests.benchmarks import prompt_sets

MIXED = ("calibration", "evaluation")
TASKS = {name: TASK_FOLDER / f"{name}.jsonl" for name in prompt_sets.TASKS}
FILES = {name: PROMPT_FOLDER / f"{name}.jsonl" for name in (*MIXED, *prompt_sets.SETS)} | TASKS

# Shorter stretches are stock phrases, such as "Substituting the first equation into the second equation, we get".
STRETCH = 80


def _rows(name):
    return prompt_sets.rows(FILES[name])


def _texts(name):
    """Every text of a set; of a task's prompt only what is its own."""
    rows = _rows(name)
    shared = rows[0]["prompt"].rpartition("Question:")[0] if name == "exact-match" else ""
    for row in rows:
        whole = row.get("text") or row["prompt"].removeprefix(shared)
        yield whole + row.get("completion", "") + row.get("solution", "") + "".join(row.get("choices", ()))


def _stretches(name):
    return {text[at : at + STRETCH] for text in _texts(name) for at in range(len(text) - STRETCH)}


CALIBRATION = ("calibration", "retrieval-calibration")


@pytest.mark.parametrize("name", [name for name in FILES if name not in CALIBRATION])
def test_nothing_that_evaluates_shares_text_with_calibration(name):
    for calibration in CALIBRATION:
        assert not _stretches(calibration) & _stretches(name)


def test_no_item_is_in_two_sets():
    sources = {name: {row_source for row in _rows(name) for row_source in row["source"]} for name in FILES}
    for one, other in combinations(FILES, 2):
        assert not sources[one] & sources[other], (one, other)
    # The solved questions in front of an exact-match question may be train items; what is asked is not.
    asked = {row["source"][0] for row in _rows("exact-match")}
    assert all(source.startswith("gsm8k/test/") for source in asked)
    assert all(source.startswith("gsm8k/test/") for source in sources["maths"])


def test_no_book_that_calibrates_is_read_for_evaluation():
    def read(name):
        sources = (source for row in _rows(name) for source in row["source"])
        return {source.rpartition("-")[0] for source in sources if source.startswith("gutenberg/")}

    books = {name: read(name) for name in ("calibration", "evaluation", "prose")}
    assert books["prose"] == books["evaluation"]
    assert not books["prose"] & books["calibration"]


def test_the_retrieval_set_is_made_again_from_its_seed():
    assert list(prompt_sets.retrieval()) == _rows("retrieval")
    assert list(prompt_sets.retrieval(prompt_sets.RECALL_CALIBRATION)) == _rows("retrieval-calibration")


def test_what_is_scored_of_retrieval_is_the_planted_code():
    for row in _rows("retrieval"):
        name = row["prompt"].rsplit("\n", 1)[1]
        assert f"{name}{row['completion']}\n" in row["prompt"]
        assert row["prompt"].count(name) == 2


def test_chats_keep_their_answers_when_they_are_made_again():
    turns = [
        tuple(part.split("\n\nAssistant:")[0] for part in row["prompt"].removeprefix("User: ").split("\n\nUser: "))
        for row in _rows("chat")
    ]
    for row, (first, second) in zip(_rows("chat"), prompt_sets.kept_answers(turns), strict=True):
        assert row["completion"] == f" {second}"
        assert first in row["prompt"]


@pytest.fixture
def sources(tmp_path):
    """Small sources of the form of the real ones."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    sentence = "A sentence of a book that goes on for a while. "
    write(
        "gutenberg/subset.jsonl",
        [
            {"id": f"{book}-{n}", "book": book, "text": f"{book} {n}\n\n" + sentence * 200}
            for book in ("alice", *prompt_sets.TEST_BOOKS)
            for n in range(10)
        ],
    )
    long = "Step by step <<1+1=2>>it adds up. " * 12
    items = [{"question": f"Question {n}?", "answer": f"{long}\n#### {n},000"} for n in range(600)]
    write("gsm8k/train.jsonl", items)
    write("gsm8k/test.jsonl", items)
    write(
        "hellaswag/subset.jsonl",
        [{"id": f"hs-{n}", "context": "Go", "choices": ["a", "b", "c", "d"], "label": n % 4} for n in range(250)],
    )
    write("mt_bench/question.jsonl", [{"question_id": n, "turns": [f"one {n}", f"two {n}"]} for n in range(80)])
    return tmp_path


def test_the_same_sources_make_the_same_files(sources, tmp_path):
    def answers(turns):
        return ((one.upper(), two.upper()) for one, two in turns)

    made = []
    for run in ("first", "second"):
        folder = tmp_path / run
        prompt_sets.build(sources, folder / "prompts", folder / "tasks", answers=answers)
        made.append({path.name: path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))})
    assert made[0] == made[1]
    assert set(made[0]) == {f"{name}.jsonl" for name in (*prompt_sets.SETS, *prompt_sets.TASKS)}
    maths = [json.loads(line) for line in made[0]["maths.jsonl"].splitlines()]
    asked = {source for row in maths for source in row["source"]}
    assert len(asked) == sum(len(row["source"]) for row in maths), "No item twice."
    assert not asked & prompt_sets.used("evaluation")
    assert all("<<" not in row["prompt"] and row["completion"].endswith("000.") for row in maths)


@pytest.mark.parametrize(("kind", "count"), [(TaskKind.MULTIPLE_CHOICE, 200), (TaskKind.EXACT_MATCH, 100)])
def test_the_shipped_questions_can_be_read(kind, count):
    found = shipped_questions(kind, count)
    assert len({question.digest for question in found}) == count
    for question in found:
        assert (question.answer in question.choices) == (kind is TaskKind.MULTIPLE_CHOICE)
        assert question.solution.endswith(f"The answer is {question.answer}.") == (kind is TaskKind.EXACT_MATCH)
