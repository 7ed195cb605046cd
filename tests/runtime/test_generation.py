import pytest
import torch

from kvtuner_core.domain.memory import cache_bytes
from kvtuner_core.domain.model import ModelSpec
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import PrefillMode, QuantScheme
from kvtuner_core.domain.tasks import GenerateTask
from kvtuner_core.errors import InputError, PolicyError
from kvtuner_core.runtime.generation import _Detokeniser, generate
from tests.fakes.models import FAMILIES, tiny_model, tiny_tokenizer
from tests.runtime.test_session import make_loaded as make_double


def make_loaded(family="llama"):
    return make_double(tiny_model(family, eos_token_id=None))


def _task(prompt="hello there", **fields):
    fields = {"policy": None, "max_new_tokens": 12, "chat": False} | fields
    return GenerateTask(model=ModelSpec(reference="tiny"), prompt=prompt, **fields)


@pytest.fixture(scope="module")
def llama():
    return make_loaded()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_without_a_policy_is_what_generate_gives(family):
    loaded = make_loaded(family)
    ids = torch.tensor([loaded.tokenizer("hello there").input_ids])
    whole = loaded.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=256, eos_token_id=258)
    expected = [token for token in whole[0, ids.shape[1] :].tolist() if token != 258]
    found = generate(loaded, _task())
    assert list(found.token_ids) == expected
    assert found.prompt_tokens == 12
    full = generate(loaded, _task(policy=KVPolicy.uniform("KV16", layers=3, scheme=QuantScheme.kivi(group_size=4))))
    assert full.token_ids == found.token_ids


@pytest.mark.parametrize("prefill", list(PrefillMode))
def test_bytes_are_those_of_the_memory_model(llama, prefill):
    policy = KVPolicy.uniform("K4V2", layers=3, scheme=QuantScheme.kivi(group_size=4, residual_length=3))
    found = generate(llama, _task(policy=policy, prefill=prefill))
    tokens = found.prompt_tokens + len(found.token_ids)
    assert found.cache_bytes == cache_bytes(policy, llama.info.layers, tokens=tokens, full_bytes=8)
    assert found.full_precision_bytes == tokens * 3 * 2 * 2 * 16 * 8
    assert generate(llama, _task()).cache_bytes == found.full_precision_bytes


def test_every_token_is_emitted_once_and_joins_to_the_text(llama):
    events = []
    found = generate(llama, _task(), emit=events.append)
    assert tuple(event.token for event in events) == found.token_ids
    assert "".join(found.token_texts) == found.text
    assert len(found.token_texts) == len(found.token_ids) == 12
    assert found.tokens_per_second > 0
    assert found.prefill_seconds > 0
    assert found.device.startswith("cpu")


def test_sampling_follows_its_seed(llama):
    runs = [generate(llama, _task(temperature=2.0, seed=seed)).token_ids for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_an_end_token_ends_it(llama, monkeypatch):
    free = generate(llama, _task()).token_ids
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [free[4], 10_000])
    found = generate(llama, _task())
    assert found.token_ids == free[: free.index(free[4])]


def test_a_cancel_ends_it_with_what_there_is(llama):
    events = []
    found = generate(llama, _task(), emit=events.append, cancelled=lambda: len(events) == 5)
    assert found.token_ids == generate(llama, _task()).token_ids[:5]


def test_the_chat_template_is_used_where_there_is_one(llama, monkeypatch):
    assert generate(llama, _task(chat=True)).prompt_tokens == 12
    monkeypatch.setattr(llama.tokenizer, "chat_template", "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert generate(llama, _task(chat=True)).prompt_tokens == 13


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"prompt": "x" * 505}, "512 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_line(llama, fields, rule):
    with pytest.raises(InputError, match=rule):
        generate(llama, _task(**fields))


def test_a_policy_of_another_model_is_refused(llama):
    with pytest.raises(PolicyError, match="one entry per cached layer"):
        generate(llama, _task(policy=KVPolicy.uniform("KV4", layers=2, scheme=QuantScheme.per_token())))


@pytest.mark.parametrize("text", ["plain words", "naïve café — 東京 🙂🙃 done", "🙂", "a🙂"])
def test_characters_of_several_tokens_come_out_whole(text):
    tokenizer = tiny_tokenizer()
    detokeniser = _Detokeniser(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    pieces = [detokeniser.push(token) for token in tokens]
    detokeniser.finish()
    assert "".join(pieces) == text
    assert detokeniser.pieces == pieces
    assert "�" not in "".join(pieces)


def test_an_unfinished_character_is_shown_at_the_end():
    tokenizer = tiny_tokenizer()
    detokeniser = _Detokeniser(tokenizer)
    tokens = tokenizer("ab🙂", add_special_tokens=False).input_ids[:-1]
    assert "".join(detokeniser.push(token) for token in tokens) == "ab"
    detokeniser.finish()
    assert "".join(detokeniser.pieces) == tokenizer.decode(tokens)
    assert len(detokeniser.pieces) == len(tokens)
