import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels.exact_attention.op import append_exact, exact_attention
from tests.kernels.exact_attention.cases import APPENDS, SMALL, TOLERANCE, Case, Shape, appended, error, make

ROOT = Path(__file__).parents[3]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

LARGE = (
    *(Shape(head_dim=d, dtype=t, tokens=777) for d in (64, 80, 96, 128, 256) for t in (torch.float16, torch.bfloat16)),
    *(Shape(group=g, queries=q, dtype=torch.bfloat16) for g in (1, 2, 7, 16) for q in (1, 2, 8)),
    *(Shape(tokens=t, dtype=torch.bfloat16, padded=False) for t in (1, 63, 64, 65, 1000, 5000)),
    *(Shape(tokens=900, sliding=w, queries=q, dtype=torch.bfloat16) for w in (1, 100, 512) for q in (1, 5)),
    Shape(tokens=500, batch=17, kv_heads=8),
    Shape(tokens=5000, queries=2, cuts=(1000, 1250, 3000), dtype=torch.bfloat16),
    Shape(tokens=1500, batch=1, head_dim=128, cuts=(1000, 2000), dtype=torch.bfloat16),
)


def run(case: Case, device: str, implementation: str) -> torch.Tensor:
    return exact_attention(
        case.query.to(device),
        [keys.to(device) for keys in case.keys],
        values=[values.to(device) for values in case.values],
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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[gpu, pytest.mark.gpu])])
@pytest.mark.parametrize(("cuts", "count", "begin", "ring"), APPENDS)
def test_appending_writes_new_tokens_where_they_belong(
    cuts: tuple[int, ...], count: int, begin: int, ring: bool, device: str
) -> None:
    keys, values, *wanted = appended(cuts, count=count, begin=begin, ring=ring, device=device, implementation="auto")
    assert torch.equal(keys, wanted[0])
    assert torch.equal(values, wanted[1])


def test_wrong_shapes_are_refused() -> None:
    case = make(SMALL[0])
    with pytest.raises(ValueError, match="first and last must be int32"):
        exact_attention(case.query, case.keys, values=case.values, first=case.first.long(), last=case.last)
    with pytest.raises(ValueError, match="multiple of the key heads"):
        exact_attention(case.query[:, :3], case.keys, values=case.values, first=case.first, last=case.last)
    with pytest.raises(ValueError, match="as many segments"):
        exact_attention(case.query, case.keys, values=(), first=case.first, last=case.last)
    with pytest.raises(ValueError, match="only segment"):
        exact_attention(case.query, case.keys * 2, values=case.values * 2, first=case.first, last=case.last, ring=True)
    progress = torch.zeros(4, dtype=torch.int32)
    too_many = torch.zeros(2, 2, case.keys[0].shape[2] + 1, 32)
    with pytest.raises(ValueError, match="new keys and values must be alike and fit"):
        append_exact(case.keys[0], case.values[0], new=(too_many, too_many), progress=progress, ring=True)


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_kernels_agree_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.exact_attention.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
