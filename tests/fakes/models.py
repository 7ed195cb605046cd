"""Tiny random-weight models of many families, and a tokenizer for them."""

from pathlib import Path

import torch
import transformers as tf

VOCABULARY = 259
"""256 bytes and the special tokens ``<pad>``, ``<s>`` and ``</s>``."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "tie_word_embeddings": False,
}

_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


_WIDE = {**_SIZES, "hidden_size": 64}

_FAMILIES: dict[str, tuple[type[tf.PretrainedConfig], dict[str, object]]] = {
    "llama": (tf.LlamaConfig, {**_SIZES, "num_key_value_heads": 2, "head_dim": 16}),
    "mistral": (tf.MistralConfig, {**_SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 21}),
    "qwen2": (tf.Qwen2Config, {**_WIDE, "num_key_value_heads": 1}),
    "gemma3": (
        tf.Gemma3TextConfig,
        {**_SIZES, "num_key_value_heads": 1, "head_dim": 24, "sliding_window": 19, "layer_types": _LAYER_TYPES},
    ),
    "gemma2": (
        tf.Gemma2Config,
        {
            **_SIZES,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 23,
            "layer_types": _LAYER_TYPES,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "phi": (tf.PhiConfig, {**_WIDE, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "gpt_neox": (tf.GPTNeoXConfig, _WIDE),
}

FAMILIES = tuple(_FAMILIES)
"""Families of `tiny_model`; mistral, gemma3 and gemma2 have sliding windows, gemma2 soft caps."""


def tiny_config(family: str, **changes: object) -> tf.PretrainedConfig:
    """The config of a family's tiny model with single fields changed."""
    kind, fields = _FAMILIES[family]
    return kind(**{**fields, **changes})


def tiny_model(family: str, *, seed: int = 0, sharpness: float = 3.0, **changes: object) -> tf.PreTrainedModel:
    """A float32 model with random weights in evaluation mode.

    Args:
        family: One of `FAMILIES`.
        seed: Seed of the weights.
        sharpness: Factor on query and key weights: random attention is nearly uniform without.
        changes: Fields of the config to change.
    """
    config = tiny_config(family, **changes)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    model = tf.AutoModelForCausalLM.from_config(config, **eager)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
                if any(part in name for part in ("q_proj", "k_proj", "query_key_value")):
                    parameter.mul_(sharpness)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    torch.random.set_rng_state(state)
    return model.eval()


def reshaping_model(kind: str) -> tf.PreTrainedModel:
    """A model that changes what its cache returned before it attends to it: ``diffllama`` or ``jetmoe``."""
    fields = {**_WIDE, "num_key_value_heads": 2}
    configs = {
        "diffllama": tf.DiffLlamaConfig(**{**fields, "hidden_size": 128}),
        "jetmoe": tf.JetMoeConfig(**fields, kv_channels=16, num_local_experts=2, num_experts_per_tok=2),
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(configs[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 2 * parameter.shape[-1] ** -0.5)
    torch.random.set_rng_state(state)
    return model.eval()


def biased_model(*, seed: int = 0, size: float = 30.0) -> tf.PreTrainedModel:
    """A Qwen2 model whose slowly rotating key channels have large biases, as the real family has."""
    model = tiny_model("qwen2", seed=seed)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias[7::8] += size
    return model


def tiny_tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token per byte, with ``<s>`` in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {"<pad>": 256, "<s>": 257, "</s>": 258}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        padding_side="left",
    )


def save_tiny(folder: Path, family: str = "llama", *, seed: int = 0, **changes: object) -> Path:
    """Write a tiny model and its tokenizer in Hugging Face layout."""
    tiny_model(family, seed=seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
