"""Decode steps of models of known structure through a few fused operations a layer."""
