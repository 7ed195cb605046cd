"""Tests of the use cases, on tiny random-weight models."""
