import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels.decode_attention.op import PackedSide, Recent, Visible, decode_attention
from tests.kernels.decode_attention import cases
from tests.kernels.decode_attention.cases import TOLERANCE, Case, Shape, error, make

ROOT = Path(__file__).parents[3]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

PAIRS = tuple(
    Shape(k_bits=k, v_bits=v, channel=channel, tokens=331, dtype=torch.bfloat16)
    for (k, v), channel in itertools.product(itertools.product((8, 4, 3, 2), repeat=2), (False, True))
)
SHAPES = (
    *(
        Shape(head_dim=d, k_bits=k, v_bits=v, channel=c, tokens=500)
        for d in (64, 96, 256)
        for k, v in ((8, 2), (4, 8), (2, 4))
        for c in (False, True)
    ),
    *(Shape(group=g, queries=q, tokens=150, channel=c) for g in (1, 2, 7, 16) for q in (1, 3) for c in (False, True)),
    *(Shape(tokens=t, channel=c) for t in (1, 31, 64, 65, 1000) for c in (False, True)),
    Shape(tokens=700, sliding=70, queries=4),
    Shape(tokens=300, recent=0),
    Shape(tokens=300, recent=131, k_bits=2),
    *(Shape(tokens=400, value_scale=s, channel=c) for s in (1e-3, 300.0) for c in (False, True)),
    *(Shape(tokens=400, key_scale=s, channel=c) for s in (1e-3, 4.0) for c in (False, True)),
    Shape(tokens=4000, batch=3, kv_heads=8, k_bits=8, v_bits=4),
)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every `torch.empty` is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run(case: Case) -> torch.Tensor:
    def move(side: PackedSide) -> PackedSide:
        return replace(side, words=side.words.cuda(), scales=side.scales.cuda())

    recent = case.recent
    if recent is not None:
        recent = Recent(keys=recent.keys.cuda(), values=recent.values.cuda(), mask=recent.mask.cuda())
    visible = Visible(first=case.visible.first.cuda(), last=case.visible.last.cuda())
    return decode_attention(
        case.query.cuda(),
        move(case.keys),
        values=move(case.values),
        visible=visible,
        recent=recent,
        implementation="triton",
    )


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*cases.SMALL, *PAIRS, *SHAPES], ids=lambda shape: shape.name)
def test_the_kernel_agrees_with_float64(shape: Shape) -> None:
    case = make(shape)
    assert error(run(case), case.expected) < TOLERANCE[shape.dtype]


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
def test_nothing_stored_and_nothing_seen() -> None:
    case = make(Shape(tokens=64, recent=2))
    assert case.recent is not None
    empty = replace(case.visible, last=torch.zeros_like(case.visible.last))
    recent = replace(case.recent, mask=torch.zeros_like(case.recent.mask))
    out = run(replace(case, visible=empty, recent=recent))
    assert torch.equal(out, torch.zeros_like(out))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("channel", [False, True])
def test_fifty_runs_are_equal(channel: bool) -> None:
    case = make(Shape(tokens=3000, k_bits=4, v_bits=2, channel=channel))
    first = run(case)
    assert all(torch.equal(run(case), first) for _ in range(49))


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_twin_agrees_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.decode_attention.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
