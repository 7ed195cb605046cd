import pytest
import torch
from transformers import AttentionInterface

from kvtuner_core.runtime.attending import Mask, masked_attention
from kvtuner_core.runtime.interception import (
    attention_implementation,
    decoder_layers,
    intercepted,
    recorded_outputs,
    skipped_layers,
)
from tests.fakes.models import FAMILIES, tiny_model

IDS = torch.arange(20)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_goes_through_ours_and_gives_the_same(family):
    model = tiny_model(family)
    implementation = attention_implementation(model)
    calls = []

    def attend(module, query, key, value, mask, **own):
        assert mask is None
        calls.append(module.layer_idx)
        position = torch.arange(query.shape[2])
        window = getattr(module, "sliding_window", None) or getattr(module.config, "sliding_window", None)
        layer_types = getattr(module.config, "layer_types", None)
        if layer_types and layer_types[module.layer_idx] == "full_attention":
            window = None
        distance = position[:, None] - position[None]
        visible = (distance >= 0) & (distance < (window or 10**9))
        seen = Mask.of(visible)
        return masked_attention(module, query, key, value, mask=seen, implementation=implementation, **own), None

    with torch.inference_mode():
        expected = model(IDS).logits
        with intercepted(model, attend):
            found = model(IDS, use_cache=False).logits
        again = model(IDS).logits
    assert calls == [0, 1, 2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(again, expected)


def test_an_error_inside_leaves_nothing_behind():
    model = tiny_model("llama")
    names = set(AttentionInterface._global_mapping)
    with pytest.raises(RuntimeError, match="stop"), intercepted(model, lambda *_a, **_k: None):
        raise RuntimeError("stop")
    assert set(AttentionInterface._global_mapping) == names
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_skipped_layers_give_what_was_recorded(family, count):
    model = tiny_model(family)
    layers = decoder_layers(model)
    with torch.inference_mode():
        with recorded_outputs(layers) as outputs:
            expected = model(IDS).logits
        with skipped_layers(layers, count, outputs[count - 1]):
            found = model(IDS, use_cache=False).logits
    assert torch.equal(found, expected)
    assert all("forward" not in vars(layer) for layer in layers)
