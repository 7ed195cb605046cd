import itertools
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels.decode_attention.op import Recent, Visible, decode_attention
from tests.kernels.decode_attention import cases
from tests.kernels.decode_attention.cases import TOLERANCE, Case, Shape, error, make, moved
from tests.kernels.decode_attention.neighbours import wrong

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
    *(
        Shape(head_dim=80, k_bits=k, v_bits=v, channel=c, tokens=333)
        for k, v in ((8, 4), (4, 8))
        for c in (False, True)
    ),
    *(
        Shape(k_bits=k, v_bits=v, channel=c, k_group=None if c else g, v_group=g, head_dim=d, tokens=700, queries=2)
        for k, v in ((8, 8), (4, 2), (2, 4))
        for c in (False, True)
        for g, d in ((16, 64), (32, 128), (64, 128), (32, 96))
    ),
    *(Shape(k_bits=3, v_bits=3, channel=c, k_group=None if c else 32, v_group=32, tokens=700) for c in (False, True)),
    *(
        Shape(k_bits=k, v_bits=v, channel=True, v_group=32, tokens=t, recent=71, value_scale=s, dtype=torch.bfloat16)
        for k, v in ((8, 8), (4, 4), (4, 2), (2, 2))
        for t, s in ((331, 1.0), (1500, 1e-3), (600, 300.0))
    ),
    *(
        Shape(tokens=t, ring=n, sliding=s, queries=q, channel=c)
        for t, n, s, q in ((1000, 4, 150, 1), (5000, 20, 1100, 3), (130, 4, 100, 2))
        for c in (False, True)
    ),
    *(Shape(tokens=2000, cuts=cuts, queries=2, channel=c) for cuts in ((7,), (1, 2, 30)) for c in (False, True)),
    Shape(tokens=2000, cuts=(16,), sliding=300, queries=2, v_group=32),
    Shape(tokens=9, cuts=(), recent=200, queries=5, group=1),
    *(
        Shape(k_bits=k, v_bits=v, channel=c, head_dim=d, tokens=500, group=g, queries=q, dtype=dtype)
        for k, v in ((16, 8), (16, 3), (2, 16), (4, 16))
        for c in (False, True)
        for d, g, q, dtype in ((128, 4, 1, torch.bfloat16), (64, 16, 3, torch.float16), (256, 1, 2, torch.bfloat16))
    ),
    *(Shape(k_bits=16, v_bits=4, head_dim=d, tokens=333, v_group=g) for d, g in ((80, 16), (96, 32), (128, 64))),
    *(Shape(k_bits=k, v_bits=v, ring=20, tokens=5000, sliding=1100, queries=3) for k, v in ((16, 2), (8, 16))),
    *(Shape(k_bits=k, v_bits=v, cuts=(1, 2, 30), tokens=2500, recent=40) for k, v in ((16, 4), (4, 16))),
    *(Shape(k_bits=k, v_bits=v, key_scale=4.0, tokens=400) for k, v in ((16, 4), (4, 16))),
)


def run(case: Case) -> torch.Tensor:
    held = moved(case, "cuda")
    sides = {"values": held.values, "visible": held.visible, "recent": held.recent}
    return decode_attention(held.query, held.keys, **sides, implementation="triton")


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
def test_what_is_planned_for_a_call_is_not_taken_for_its_neighbour() -> None:
    assert wrong("cuda") == []


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


def laid(x: torch.Tensor, form: str) -> torch.Tensor:
    """The same numbers ``[B, H, R, D]`` as another kind of view."""
    b, h, r, d = x.shape
    if form == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if form == "odd rows":
        return x.new_zeros(b, h, r, d + 3)[..., :d].copy_(x)
    if form == "odd offset":
        return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
    return x.transpose(2, 3).contiguous().transpose(2, 3)


FORMS = ("transposed", "odd rows", "odd offset", "channels first")


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("form", FORMS)
def test_recent_tokens_may_be_any_view(form: str) -> None:
    case = make(Shape(tokens=150, recent=37, channel=True, v_group=32))
    held = moved(case, "cuda").recent
    assert held is not None
    recent = replace(held, keys=laid(held.keys, form), values=laid(held.values, form))
    assert error(run(replace(case, recent=recent)), case.expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(2, 3, 5, 48), (1, 1, 1, 48), (1, 1, 4, 48), (2, 1, 1, 48)])
def test_any_view_becomes_words(form: str, size: tuple[int, ...]) -> None:
    triton_impl = pytest.importorskip("kernels.decode_attention.triton_impl", exc_type=ImportError)
    x = torch.randn(size).half()
    recent = Recent(keys=laid(x, form), values=laid(-x, form), mask=torch.ones(size[0], 1, size[2], dtype=torch.bool))
    words = triton_impl.exact_words(x, recent)
    assert torch.equal(words.keys.contiguous().view(torch.float16), x)
    assert torch.equal(words.values.contiguous().view(torch.float16), -x)
    assert (words.slots, words.kind.tiles) == (size[2], 1)


@pytest.mark.parametrize(("keys", "values"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)])
def test_recent_tokens_of_another_kind_are_left_to_the_merge(keys: torch.dtype, values: torch.dtype) -> None:
    triton_impl = pytest.importorskip("kernels.decode_attention.triton_impl", exc_type=ImportError)
    x = torch.randn(1, 1, 4, 48)
    recent = Recent(keys=x.to(keys), values=x.to(values), mask=torch.ones(1, 1, 4, dtype=torch.bool))
    odd = torch.zeros(49, dtype=torch.float16)[1:].view(1, 1, 1, 48)
    assert triton_impl.exact_words(odd, recent).kind.tiles == triton_impl.exact_words(odd, None).kind.tiles == 0


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("channel", [False, True])
def test_fifty_runs_are_equal(channel: bool) -> None:
    case = make(Shape(tokens=3000, k_bits=4, v_bits=2, channel=channel))
    first = run(case)
    assert all(torch.equal(run(case), first) for _ in range(49))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("cuts", "slots"), [((), 0), ((5, 20), 0), ((), 71), ((5, 20), 40)])
def test_one_captured_graph_is_right_at_every_length(cuts: tuple[int, ...], slots: int) -> None:
    case = make(Shape(tokens=4096, batch=1, recent=slots, cuts=cuts))
    held = moved(case, "cuda")
    visible, sides = held.visible, {"values": held.values, "visible": held.visible, "recent": held.recent}
    decode_attention(held.query, held.keys, **sides)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(held.query, held.keys, **sides)
    for first, last in ((0, 4096), (0, 1), (0, 0), (100, 150), (300, 1400), (4000, 4096), (0, 1281)):
        visible.first.fill_(first)
        visible.last.fill_(last)
        out.fill_(torch.nan)
        graph.replay()
        now = Visible(first=visible.first.cpu(), last=visible.last.cpu())
        expected = decode_attention(
            case.query.float(),
            case.keys,
            values=case.values,
            visible=now,
            recent=case.recent,
            implementation="reference",
        )
        assert error(out, expected.double()) < TOLERANCE[torch.float16]


@pytest.mark.skipif(version("triton") < "3.7", reason="older interpreters fail on loop bounds with NumPy 2.5")
def test_the_twin_agrees_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.kernels.decode_attention.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
