"""The live model: loading, capture, packed cache, evaluation and generation (torch, transformers)."""
