"""Tests of the command line, on tiny random-weight models."""
