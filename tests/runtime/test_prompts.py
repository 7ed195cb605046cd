import pytest

from kvtuner_core.domain.prompts import Prompt
from kvtuner_core.errors import PromptError
from kvtuner_core.runtime.prompts import cut_prompts
from tests.fakes.models import tiny_tokenizer


def _cut(*prompts, prefix=20, suffix=5, positions=512):
    return cut_prompts(prompts, tiny_tokenizer(), prefix_tokens=prefix, suffix_tokens=suffix, max_positions=positions)


def _text(ids):
    return tiny_tokenizer().decode(ids, skip_special_tokens=True)


def test_a_text_is_cut_after_its_first_tokens():
    (cut,) = _cut(Prompt(text="abcdefghijklmnopqrstuvwxyz"))
    assert (_text(cut.prefix), _text(cut.suffix), _text([cut.following])) == ("abcdefghijklmnopqrs", "tuvwx", "y")
    assert cut.prefix[0] == 257


def test_a_short_text_gives_a_shorter_prefix():
    (cut,) = _cut(Prompt(text="abcdefghijklmno"))
    assert (_text(cut.prefix), _text(cut.suffix), cut.following) == ("abcdefghij", "klmno", None)


def test_a_completion_is_scored_from_its_start_after_the_prompts_end():
    (cut,) = _cut(Prompt(text="abcdefghijklmnopqrstuvwxyz", completion="0123456789"))
    assert (_text(cut.prefix), _text(cut.suffix), _text([cut.following])) == ("hijklmnopqrstuvwxyz", "01234", "5")
    assert cut.prefix[0] == 257
    assert len(cut.prefix) == 20


def test_a_short_completion_gives_a_shorter_suffix():
    (cut,) = _cut(Prompt(text="abcdefghijkl", completion="012"))
    assert (_text(cut.suffix), cut.following) == ("012", None)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(text="abc"),
        Prompt(text=""),
        Prompt(text="abcdefghijkl", completion="0"),
        Prompt(text="ab", completion="0123456"),
    ],
)
def test_the_first_prompt_that_is_too_short_is_named(prompt):
    with pytest.raises(PromptError, match="prompt 2 has"):
        _cut(Prompt(text="abcdefghijklmnopqrstuvwxyz"), prompt)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(PromptError, match="At least one"):
        _cut()
    with pytest.raises(PromptError, match="at least 8"):
        _cut(Prompt(text="a" * 50), prefix=4)
    with pytest.raises(PromptError, match="at least 2"):
        _cut(Prompt(text="a" * 50), suffix=1)
    with pytest.raises(PromptError, match="24 positions"):
        _cut(Prompt(text="a" * 50), positions=24)
