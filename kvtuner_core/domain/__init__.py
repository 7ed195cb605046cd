"""Frozen values and the protocols between the folders; standard library and NumPy only."""
