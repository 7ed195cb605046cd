"""Models with random weights and texts of random words: enough for timing."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def random_llama(config: LlamaConfig, *, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model whose query and key weights are drawn wider, since random attention would be nearly uniform otherwise."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                sharp = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(0.0, sharp * parameter.shape[-1] ** -0.5)
    return model


def random_texts(count: int, characters: int, *, seed: int) -> list[str]:
    """Texts of random words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(400)]
    return [" ".join(rng.choices(words, k=characters))[:characters] for _ in range(count)]
