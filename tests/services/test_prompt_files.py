import pytest

from kvtuner_core.errors import PromptError
from kvtuner_core.services import prompt_files
from kvtuner_core.services.prompt_files import read_prompts


def _texts(name, data):
    return [prompt.text for prompt in read_prompts(name, data)]


def test_a_text_file_is_one_prompt():
    assert _texts("a.txt", b"One line.\n\nAnother paragraph.\n") == ["One line.\n\nAnother paragraph."]


def test_lines_of_three_dashes_part_prompts():
    assert _texts("a.TXT", b"one\n---\r\n\n---\n two -- three\n---") == ["one", " two -- three"]


def test_jsonl_rows_may_have_more_keys_and_empty_lines():
    data = b'\xef\xbb\xbf{"text": "a\\u2028b", "id": 1}\n\n{"prompt": "p", "completion": "c"}\r\n'
    assert [(p.text, p.completion) for p in read_prompts("a.jsonl", data)] == [("a\u2028b", ""), ("p", "c")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "a"}\nnope', "Line 2 of 'a.jsonl' must be one JSON object; it is not valid JSON"),
        (b"[1]", "Line 1 .* must be a JSON object"),
        (b'{"prompt": "p"}', "Line 1 .* it has neither"),
        (b'{"text": "a", "prompt": "p"}', "got both"),
        (b'{"text": 3}', "text as text that is not empty"),
        (b'{"text": " "}', "not empty"),
        (b'{"prompt": "p", "completion": ""}', "completion as text that is not empty"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"\n\n", "at least one text"),
        (b'{"text": "a"}\n{"text": "\xff"}', "UTF-8 text; 'a.jsonl' is not in line 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(data, message):
    with pytest.raises(PromptError, match=message) as caught:
        read_prompts("a.jsonl", data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_other_files_are_refused():
    with pytest.raises(PromptError, match=r"ends in .jsonl or .txt; got 'a.csv'"):
        read_prompts("/x/a.csv", b"text")


def test_size_count_and_length_are_limited(monkeypatch):
    monkeypatch.setattr(prompt_files, "MAX_BYTES", 10)
    with pytest.raises(PromptError, match="at most 10 bytes"):
        read_prompts("a.txt", b"x" * 11)
    monkeypatch.undo()
    with pytest.raises(PromptError, match="at most 2000 texts"):
        read_prompts("a.jsonl", b'{"text": "a"}\n' * 2001)
    with pytest.raises(PromptError, match=r"The text from line 3 .* may have 200000 characters; got 200001"):
        read_prompts("a.txt", b"a\n---\n" + b"x" * 200_001)
