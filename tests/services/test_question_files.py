import pytest

from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.questions import TaskKind
from kvtuner_core.errors import PromptError
from kvtuner_core.services.question_files import file_questions, made_questions, read_questions
from kvtuner_core.services.recall import RecallSpec


def test_a_file_of_ones_own_is_read(ws, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "2+2=", "answer": "4", "stop": ".", "id": 1}\n\n{"prompt": "3+3=", "answer": "6"}\n')
    first, second = file_questions(ws, TaskKind.EXACT_MATCH, str(path), 2)
    assert (first.prompt, first.answer, first.stop, second.answer) == ("2+2=", "4", ".", "6")
    with pytest.raises(PromptError, match=r"items must be from 1 to the 2 of 'mine.jsonl'; got 3"):
        file_questions(ws, TaskKind.EXACT_MATCH, str(path), 3)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("not json", "Line 1"),
        ('{"prompt": "a"}', "answer: Field required"),
        ('{"prompt": 3, "answer": "b"}', "prompt: Input should be a valid string"),
        ('{"prompt": "", "answer": "b"}', "at least 1 character"),
        ('{"prompt": "a", "answer": "b", "choices": ["c", "d"]}', "one of which is the answer"),
        ('{"prompt": "a", "answer": "b"}', "one of which is the answer"),
        ('{"prompt": "a", "answer": "b", "max_new_tokens": -1}', "max_new_tokens"),
        ("", "holds 1 to"),
    ],
)
def test_a_line_that_is_no_question_is_named(line, rule):
    with pytest.raises(PromptError, match=rule):
        read_questions(TaskKind.MULTIPLE_CHOICE, "mine.jsonl", line.encode())


def test_other_bytes_and_half_characters_are_refused():
    with pytest.raises(PromptError, match="UTF-8"):
        read_questions(TaskKind.EXACT_MATCH, "mine.jsonl", b"\xff")
    with pytest.raises(PromptError, match="Line 1"):
        read_questions(TaskKind.EXACT_MATCH, "mine.jsonl", b'{"prompt": "\\ud800", "answer": "b"}')


def test_only_allowed_folders_and_jsonl_files_are_read(open_workspace, tmp_path):
    (tmp_path / "in").mkdir()
    outside = tmp_path / "out.jsonl"
    outside.write_text('{"prompt": "a", "answer": "b"}')
    ws = open_workspace(model_roots=(tmp_path / "in",))
    with pytest.raises(PromptError, match="KVTUNER_MODEL_ROOTS"):
        file_questions(ws, TaskKind.EXACT_MATCH, str(outside), 1)
    with pytest.raises(PromptError, match=r"\.jsonl file"):
        file_questions(ws, TaskKind.EXACT_MATCH, "questions.txt", 1)


def test_a_wanted_length_is_counted_in_tokens_of_the_model(ws, tiny):
    model = ModelSpec(reference=str(tiny))
    questions = made_questions(ws, model, RecallSpec(count=2, pairs=4, length=900))
    # The tiny model's tokens are bytes, and a sentence of the filler may be some hundred long.
    assert all(500 < len(question.prompt.encode()) <= 900 for question in questions)
    assert made_questions(ws, model, RecallSpec(count=2, pairs=4))[0].prompt != questions[0].prompt
