"""Runs a module of tests in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_interpreter = pytest.mark.skipif(
    version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5"
)


def run_interpreted(module: str) -> None:
    """Run ``module``; the test fails with what it printed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
