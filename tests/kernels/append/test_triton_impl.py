import itertools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.kernels.append.cases import SMALL, Shape, differences, fill, history

ROOT = Path(__file__).parents[3]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SHAPES = (
    *(
        Shape(k_bits=k, v_bits=v, channel=c, head_dim=128, dtype=torch.bfloat16, sinks=s, pieces=(200, *(1,) * 40, 33))
        for (k, v), c, s in zip(
            itertools.chain(*itertools.repeat(tuple(itertools.product((8, 4, 3, 2), repeat=2)), 2)),
            (*(False,) * 16, *(True,) * 16),
            itertools.cycle((0, 4, 1)),
            strict=False,
        )
    ),
    *(
        Shape(k_bits=4, v_bits=8, channel=c, head_dim=d, pieces=(333, 3, 8, 1, 60), blocks=7)
        for c in (False, True)
        for d in (64, 80, 96, 128, 256)
    ),
    *(
        Shape(k_bits=k, v_bits=2, k_group=g, v_group=g, head_dim=d, pieces=(99, 1, 1, 50))
        for k in (2, 8)
        for g, d in ((16, 64), (32, 128), (64, 128), (32, 96))
    ),
    *(
        Shape(channel=c, ring=True, blocks=4, pieces=(3000, 1, 7, 1, 500, *(8,) * 9), head_dim=128, v_group=32)
        for c in (False, True)
    ),
    *(Shape(channel=c, blocks=1, second=4, pieces=(90, *(7,) * 6, 80), sinks=4) for c in (False, True)),
    *(
        Shape(channel=c, dtype=dtype, size=size, pieces=(130, 2, 40))
        for c in (False, True)
        for dtype, size in ((torch.float32, 1e6), (torch.float32, 1e-9), (torch.bfloat16, 1e-4), (torch.float16, 3e4))
    ),
    Shape(pieces=(5000, 1, 1, 1), blocks=80, batch=3, heads=8, head_dim=128, k_bits=2, v_bits=3),
)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SMALL, *SHAPES], ids=lambda shape: shape.name)
def test_every_bit_is_that_of_the_reference(shape: Shape) -> None:
    both = history(shape)
    assert not any(differences(fill(shape, both, device="cuda", implementation="triton"), fill(shape, both)))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("channel", [False, True])
def test_fifty_runs_are_equal(channel: bool) -> None:
    shape = Shape(k_bits=3, v_bits=2, channel=channel, head_dim=128, ring=True, blocks=3, pieces=(900, *(8,) * 12, 77))
    both = history(shape)
    first = fill(shape, both, device="cuda", implementation="triton")
    assert not any(
        any(differences(fill(shape, both, device="cuda", implementation="triton"), first)) for _ in range(49)
    )


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_kernels_agree_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.append.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
