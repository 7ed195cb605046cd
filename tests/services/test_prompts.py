import json
from itertools import combinations

import pytest

from kvtuner_core.domain.prompts import PromptKind, PromptRole
from kvtuner_core.errors import InputError, PromptError
from kvtuner_core.services.prompts import PROMPT_FOLDER, add_upload, list_prompt_sets, resolve_prompts, shipped_of_kind


def _rows(name):
    return [json.loads(line) for line in (PROMPT_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _sources(name):
    return [source for row in _rows(name) for source in row["source"]]


def test_the_shipped_sets_are_listed_with_origin_and_licence(ws):
    calibration, evaluation, *kinds, recall = list_prompt_sets(ws)
    assert (recall.reference, recall.role, recall.count) == ("retrieval-calibration", PromptRole.CALIBRATION, 24)
    assert (calibration.reference, calibration.role) == ("calibration", PromptRole.CALIBRATION)
    assert (evaluation.reference, evaluation.role) == ("evaluation", PromptRole.EVALUATION)
    for info in (calibration, evaluation):
        assert info.count == 24
        assert info.origin
        assert info.licence
        assert info.characters > 100_000
        assert info.kind is None
    assert [info.kind for info in kinds] == list(PromptKind)
    for info in kinds:
        assert info.role is PromptRole.EVALUATION
        assert info.count >= 12
        assert info.origin
        assert info.licence
        assert shipped_of_kind(info.kind).name == info.reference


def test_no_item_and_no_book_is_in_both_sets_or_twice():
    calibration, evaluation = _sources("calibration"), _sources("evaluation")
    assert len({*calibration, *evaluation}) == len(calibration) + len(evaluation)
    books = [
        {source.rpartition("-")[0] for source in side if "gutenberg" in source} for side in (calibration, evaluation)
    ]
    assert books[0]
    assert books[1]
    assert not books[0] & books[1]
    assert {source.split("/")[1] for source in calibration if "gsm8k" in source} == {"train"}
    assert {source.split("/")[1] for source in evaluation if "gsm8k" in source} == {"test"}


def test_passages_of_one_book_do_not_overlap():
    texts = [row["text"] for name in ("calibration", "evaluation", "prose") for row in _rows(name) if "text" in row]
    for one, other in combinations(texts, 2):
        assert one[:200] not in other
        assert other[:200] not in one


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_the_first_prompts_mix_mathematics_and_prose(ws, name):
    found = resolve_prompts(ws, name, limit=4)
    assert [bool(prompt.completion) for prompt in found.prompts] == [False, True, False, True]
    assert all(len(prompt.text) > 3000 for prompt in resolve_prompts(ws, name).prompts)
    assert all(len(p.completion) > 300 for p in resolve_prompts(ws, name).prompts if p.completion)


@pytest.mark.model
def test_every_text_is_long_enough_for_the_bundled_model(ws):
    from transformers import AutoTokenizer

    from kvtuner_core.runtime.references import bundled_model_path

    path = bundled_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for name in ("calibration", "evaluation", "prose", "maths"):
        _check_length(tokenizer, resolve_prompts(ws, name).prompts)
    for name in ("chat", "retrieval"):
        assert all(len(tokenizer(prompt.text).input_ids) >= 100 for prompt in resolve_prompts(ws, name).prompts)


def _check_length(tokenizer, prompts):
    for prompt in prompts:
        assert len(tokenizer(prompt.text).input_ids) >= 512 + (0 if prompt.completion else 128)
        if prompt.completion:
            assert len(tokenizer(prompt.completion).input_ids) >= 100


def test_limits_are_checked(ws):
    with pytest.raises(PromptError, match="limit must be at least 1 prompt; got 0"):
        resolve_prompts(ws, "calibration", limit=0)


def test_an_unknown_name_lists_the_shipped_ones(ws):
    with pytest.raises(PromptError, match=r"evaluation, .*, retrieval-calibration, or a .jsonl or .txt file"):
        resolve_prompts(ws, "nothing")


def test_a_local_file_is_read(ws, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "one"}\n{"prompt": "two", "completion": "three"}\n')
    found = resolve_prompts(ws, str(path))
    assert found.role is PromptRole.USER
    assert [(prompt.text, prompt.completion) for prompt in found.prompts] == [("one", ""), ("two", "three")]


def test_a_missing_file_is_named(ws, tmp_path):
    with pytest.raises(InputError, match=r"existing file.*gone.txt"):
        resolve_prompts(ws, str(tmp_path / "gone.txt"))


def test_local_files_must_lie_in_the_allowed_folders(open_workspace, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("inside")
    (tmp_path / "b.txt").write_text("outside")
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "b.txt")
    ws = open_workspace(model_roots=(tmp_path / "in",))
    assert resolve_prompts(ws, str(tmp_path / "in" / "a.txt")).prompts[0].text == "inside"
    for outside in ("b.txt", "in/link.txt", "in/../b.txt"):
        with pytest.raises(PromptError, match="KVTUNER_MODEL_ROOTS"):
            resolve_prompts(ws, str(tmp_path / outside))


def test_uploads_are_kept_once_and_found_again(ws):
    info = add_upload(ws, r"C:\texts\mine.txt", b"some text\n---\nmore")
    assert (info.name, info.count, info.role) == ("mine.txt", 2, PromptRole.USER)
    assert add_upload(ws, "mine.txt", b"some text\n---\nmore").reference == info.reference
    assert list_prompt_sets(ws)[-1] == info
    assert resolve_prompts(ws, info.reference, limit=1).prompts[0].text == "some text"


def test_an_unknown_upload_is_refused(ws):
    with pytest.raises(PromptError, match="must be in this store"):
        resolve_prompts(ws, "upload:abc")
