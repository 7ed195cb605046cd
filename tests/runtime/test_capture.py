import pytest
import torch

from kvtuner_core.runtime import capture, footprint
from kvtuner_core.runtime.prompts import CutPrompt
from tests.fakes.models import tiny_model
from tests.runtime.test_session import make_loaded


def _prompt(index, prefix, suffix):
    ids = [(index * 31 + token * 7) % 250 for token in range(prefix + suffix)]
    return CutPrompt(index=index, prefix=tuple(ids[:prefix]), suffix=tuple(ids[prefix:]), following=None)


def test_batches_have_one_suffix_length_and_a_bounded_size():
    prompts = [_prompt(index, 10 + index % 3, 100 if index % 2 else 60) for index in range(20)]
    groups = list(capture.batches(prompts, device=torch.device("cpu"), vocabulary=50))
    assert sorted(prompt.index for group in groups for prompt in group) == list(range(20))
    for group in groups:
        assert len({len(prompt.suffix) for prompt in group}) == 1
        assert sum(len(prompt.suffix) for prompt in group) <= 512
    assert sorted(len(group) for group in groups) == [5, 5, 5, 5]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_reading_in_pieces_gives_the_same_history(family, monkeypatch):
    loaded = make_loaded(tiny_model(family))
    prompts = tuple(_prompt(index, 50, 5) for index in range(3))
    with torch.inference_mode():
        whole = capture.capture(loaded, prompts).parts[0].history
        monkeypatch.setattr(footprint, "CHUNK_TOKENS", {"cpu": 17})
        pieces = capture.capture(loaded, prompts).parts[0].history
    for first, second in zip(whole, pieces, strict=True):
        assert first.keys.shape == (3, loaded.info.layers[0].kv_heads, 50, loaded.info.layers[0].key_dim)
        torch.testing.assert_close(first.keys, second.keys)
        torch.testing.assert_close(first.values, second.values)
