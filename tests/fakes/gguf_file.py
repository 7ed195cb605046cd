"""Writes a tiny Llama model with its tokenizer as a GGUF file."""

from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers

_LAYERS, _HIDDEN, _HEADS, _KV_HEADS, _INNER = 2, 64, 4, 2, 96


def write_tiny_gguf(path: Path, *, seed: int = 0) -> Path:
    """A byte-level Llama of two layers, random weights in float32."""
    import gguf

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<s>", "</s>", "ab", "abc"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 3 + [1] * 2)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_pad_token_id(256)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    random = np.random.default_rng(seed)
    for name, shape in _tensors(len(tokens)).items():
        values = random.normal(0, shape[-1] ** -0.5, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    keys = _HIDDEN // _HEADS * _KV_HEADS
    layer = {
        "attn_norm": (_HIDDEN,),
        "ffn_norm": (_HIDDEN,),
        "attn_q": (_HIDDEN, _HIDDEN),
        "attn_k": (keys, _HIDDEN),
        "attn_v": (keys, _HIDDEN),
        "attn_output": (_HIDDEN, _HIDDEN),
        "ffn_gate": (_INNER, _HIDDEN),
        "ffn_up": (_INNER, _HIDDEN),
        "ffn_down": (_HIDDEN, _INNER),
    }
    tensors = {"token_embd.weight": (vocabulary, _HIDDEN), "output_norm.weight": (_HIDDEN,)}
    for index in range(_LAYERS):
        tensors |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return tensors
