import dataclasses

import pytest
import torch
import transformers as tf
from transformers import DynamicCache

from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.errors import ModelError
from kvtuner_core.runtime.geometry import describe_config, fingerprint, layer_geometry, model_info
from tests.fakes.models import FAMILIES, tiny_config, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_geometry_is_what_the_models_own_cache_holds(family):
    model = tiny_model(family)
    cache = DynamicCache(config=model.config)
    model(torch.randint(0, 255, (2, 30)), past_key_values=cache)
    layers = layer_geometry(model.config)
    assert len(layers) == len(cache.layers)
    for layer, held in zip(layers, cache.layers, strict=True):
        tokens = 30 if layer.sliding_window is None else layer.sliding_window - 1
        assert held.keys.shape == (2, layer.kv_heads, tokens, layer.key_dim)
        assert held.values.shape == (2, layer.kv_heads, tokens, layer.value_dim)


def test_sliding_windows_are_read_per_layer():
    windows = [layer.sliding_window for layer in layer_geometry(tiny_config("gemma3"))]
    assert windows == [19, None, 19]
    assert {layer.sliding_window for layer in layer_geometry(tiny_config("qwen2"))} == {None}
    some = tf.Qwen2Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=64, max_window_layers=2)
    assert [layer.sliding_window for layer in layer_geometry(some)] == [None, None, 64, 64]


def test_head_dim_is_the_configs_own():
    assert layer_geometry(tiny_config("gemma3"))[0] == LayerGeometry(
        kv_heads=1, key_dim=24, value_dim=24, sliding_window=19
    )


def test_layers_that_reuse_a_cache_have_no_entry():
    types = ["sliding_attention", "full_attention"] * 3
    config = tf.Gemma3nTextConfig(
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=types,
        intermediate_size=[64] * 6,
        activation_sparsity_pattern=[0.0] * 6,
    )
    assert len(layer_geometry(config)) == 4


def test_a_multi_modal_config_gives_its_decoder():
    config = tf.Gemma3Config(text_config=tiny_config("gemma3").to_dict())
    assert layer_geometry(config) == layer_geometry(tiny_config("gemma3"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tf.T5Config(), "encoder-decoder"),
        (tf.MambaConfig(), "no attention heads"),
        (tf.Qwen3NextConfig(), "LinearAttentionLayer"),
        (tf.JambaConfig(), "recurrent"),
        (tf.DeepseekV3Config(), "latent"),
        (tf.Llama4TextConfig(), "chunked"),
        (tf.DogeConfig(), "from the cached values"),
    ],
)
def test_models_without_keys_and_values_per_token_are_refused_with_the_reason(config, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        layer_geometry(config)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_knows_weights_but_not_the_dtype():
    model = tiny_model("llama")
    first = fingerprint(model)
    assert fingerprint(tiny_model("llama")) == first
    assert fingerprint(tiny_model("llama", seed=1)) != first
    assert fingerprint(tiny_model("llama").to(torch.bfloat16)) == first


def test_info_from_the_config_is_info_from_the_model_without_weights():
    model = tiny_model("phi")
    loaded = model_info("some/tiny-phi", model)
    described = describe_config("some/tiny-phi", model.config)
    assert loaded.name == "tiny-phi"
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert dataclasses.replace(loaded, fingerprint="", parameters=0) == described


@pytest.mark.parametrize("changes", [{"head_dim": 0}, {"num_attention_heads": 0}, {"head_dim": -8}])
def test_heads_without_values_are_refused(changes):
    config = tiny_config("llama")
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ModelError, match="heads must each hold values"):
        layer_geometry(config)


@pytest.mark.parametrize(
    ("fields", "kv_heads"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 4),
    ],
)
def test_falcons_heads_are_those_it_caches(fields, kv_heads):
    config = tf.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, **fields)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    model(torch.randint(0, 64, (1, 5)), past_key_values=cache)
    assert layer_geometry(config)[0].kv_heads == cache.layers[0].keys.shape[1] == kv_heads
