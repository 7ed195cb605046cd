"""Attention of a few query tokens over packed keys and values and recent exact ones."""
