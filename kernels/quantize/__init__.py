"""Rounding keys and values to few bits, and packing the codes."""
