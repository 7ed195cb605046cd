"""Products of float32 matrices by oneDNN, against float64."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from kvtuner_core.runtime import products
from kvtuner_core.runtime.head import Head
from kvtuner_core.runtime.products import HastenedLinear, hasten, hastens, linear


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def hastened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, on any processor on which torch has oneDNN."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "hastens", lambda: request.param)
    monkeypatch.setattr("kvtuner_core.runtime.head.hastens", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 72, 40), (145, 576, 192), (0, 8, 8), (16, 1, 1)])
@pytest.mark.usefixtures("hastened")
def test_a_product_is_right_to_the_rounding_of_float32(shape: tuple[int, int, int], bias: bool) -> None:
    rows, inner, columns = shape
    torch.manual_seed(rows)
    states, weight = torch.randn(2, rows, inner), torch.randn(columns, inner)
    added = torch.randn(columns) if bias else None
    exact = nn.functional.linear(states.double(), weight.double(), None if added is None else added.double())
    found = linear(states, weight, added)
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert rows == 0 or float((found - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.usefixtures("hastened")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats_are_left_to_torch(dtype: torch.dtype) -> None:
    states, weight = torch.randn(4, 16).to(dtype), torch.randn(8, 16).to(dtype)
    assert torch.equal(linear(states, weight), nn.functional.linear(states, weight))


@pytest.mark.usefixtures("hastened")
def test_views_are_multiplied_as_they_are_seen() -> None:
    states, weight = torch.randn(6, 32)[:, ::2], torch.randn(16, 24).t()
    exact = states.double() @ weight.double().t()
    assert torch.allclose(linear(states, weight).double(), exact, atol=1e-5)
    assert torch.allclose(linear(states.expand(3, 6, 16), weight)[2].double(), exact, atol=1e-5)
    assert torch.allclose(linear(states, weight.contiguous()).double(), exact, atol=1e-5)


@pytest.mark.usefixtures("hastened")
@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("shape", [(5, 12, 7), (1, 24, 1), (150, 96, 33)])
def test_gradients_are_right_as_far_as_they_are_wanted(
    shape: tuple[int, int, int], wanted: tuple[bool, bool, bool]
) -> None:
    rows, inner, columns = shape
    torch.manual_seed(rows)
    exact = [
        tensor.double().requires_grad_(want)
        for tensor, want in zip(
            (torch.randn(2, rows, inner), torch.randn(columns, inner), torch.randn(columns)), wanted, strict=True
        )
    ]
    mine = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in exact]
    # The second product sees the first one's gradient as a view, transposed.
    passed = torch.randn(columns, rows, 2)
    nn.functional.linear(*exact).backward(passed.double().permute(2, 1, 0))
    linear(*mine).backward(passed.permute(2, 1, 0))
    for one, other in zip(mine, exact, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert float((one.grad - other.grad).norm() / other.grad.norm()) < 1e-5


@pytest.mark.usefixtures("hastened")
def test_a_hastened_model_still_has_gradients_and_can_be_copied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    states = torch.randn(3, 8)
    before = model(states)
    before.sum().backward()
    gradient = model[0].weight.grad.clone()
    hasten(model)
    model.zero_grad()
    assert type(model[0]) is HastenedLinear
    model(states).sum().backward()
    assert torch.allclose(model[0].weight.grad, gradient)
    twin = copy.deepcopy(model)
    twin[0].weight.data.zero_()
    with torch.inference_mode():
        assert torch.allclose(model(states), before, atol=1e-6)
        assert not torch.allclose(twin(states), before, atol=1e-3)


def test_what_linear_layers_were_made_into_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(4, 4))
    hasten(model)
    assert type(model[0]) is Scaled


@pytest.mark.parametrize("rows", [1, 600])
def test_the_head_makes_the_logits_of_its_matrix(hastened: bool, rows: int) -> None:
    torch.manual_seed(1)
    weight, bias, states = torch.randn(5000, 48), torch.randn(5000), torch.randn(rows, 48)
    with torch.inference_mode():
        found = Head(weight, bias).logits(states)
    exact = states.double() @ weight.double().t() + bias.double()
    assert float((found - exact).norm() / exact.norm()) < 1e-6, hastened


def test_the_choice_follows_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for vendor, expected in (("GenuineIntel", False), ("AuthenticAMD", True)):
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor : 0\nvendor_id\t: {vendor}\n")
        monkeypatch.setattr(products, "_CPU_INFO", info)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        hastens.cache_clear()
        assert hastens() is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    hastens.cache_clear()
    assert not hastens()
    hastens.cache_clear()
