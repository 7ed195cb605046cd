"""Residual sum and root-mean-square norm in one pass."""
