"""Queries, keys and values out of one product: bias, norm of heads and rotary embedding in one pass."""
