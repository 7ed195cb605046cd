"""Quantise, pack, unpack and attend: one folder an operation."""
