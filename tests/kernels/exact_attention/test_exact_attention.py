import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels.exact_attention.op import append_exact, exact_attention
from tests.kernels.exact_attention.cases import SMALL, TOLERANCE, Case, Shape, error, make

ROOT = Path(__file__).parents[3]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

LARGE = (
    *(Shape(head_dim=d, dtype=t, tokens=777) for d in (64, 80, 96, 128, 256) for t in (torch.float16, torch.bfloat16)),
    *(Shape(group=g, queries=q, dtype=torch.bfloat16) for g in (1, 2, 7, 16) for q in (1, 2, 8)),
    *(Shape(tokens=t, dtype=torch.bfloat16, padded=False) for t in (1, 63, 64, 65, 1000, 5000)),
    *(Shape(tokens=900, sliding=w, queries=q, dtype=torch.bfloat16) for w in (1, 100, 512) for q in (1, 5)),
    Shape(tokens=500, batch=17, kv_heads=8),
)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every `torch.empty` is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run(case: Case, device: str, implementation: str) -> torch.Tensor:
    return exact_attention(
        case.query.to(device),
        case.keys.to(device),
        values=case.values.to(device),
        first=case.first.to(device),
        last=case.last.to(device),
        ring=case.ring,
        implementation=implementation,
    )


@pytest.mark.parametrize("shape", [*SMALL, *LARGE], ids=lambda shape: shape.name)
def test_the_reference_agrees_with_float64(shape: Shape) -> None:
    case = make(shape)
    assert error(run(case, "cpu", "reference"), case.expected) < TOLERANCE[shape.dtype]


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shape", [shape for shape in (*SMALL, *LARGE) if shape.dtype != torch.float32], ids=lambda s: s.name
)
def test_the_kernel_agrees_with_float64(shape: Shape) -> None:
    case = make(shape)
    out = run(case, "cuda", "triton")
    assert error(out, case.expected) < TOLERANCE[shape.dtype]
    assert all(torch.equal(run(case, "cuda", "triton"), out) for _ in range(5))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("count", "begin"), [(1, 5), (3, 8), (9, 3), (40, 90)])
def test_appending_writes_what_the_reference_writes(count: int, begin: int) -> None:
    held = [torch.zeros(2, 3, 64, 24, device="cuda") for _ in range(4)]
    new = tuple(torch.randn(2, count, 3, 24, device="cuda").transpose(1, 2) for _ in range(2))
    progress = torch.tensor([begin, 0, 0, 0], dtype=torch.int32, device="cuda")
    append_exact(held[0], held[1], new=new, progress=progress, implementation="triton")
    append_exact(held[2], held[3], new=new, progress=progress, implementation="reference")
    assert torch.equal(held[0], held[2])
    assert torch.equal(held[1], held[3])


def test_wrong_shapes_are_refused() -> None:
    case = make(SMALL[0])
    with pytest.raises(ValueError, match="first and last must be int32"):
        exact_attention(case.query, case.keys, values=case.values, first=case.first.long(), last=case.last)
    with pytest.raises(ValueError, match="multiple of the key heads"):
        exact_attention(case.query[:, :3], case.keys, values=case.values, first=case.first, last=case.last)


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_kernels_agree_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.exact_attention.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
