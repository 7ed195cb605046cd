"""Products of float32 matrices by oneDNN, against float64."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kvtuner_core.runtime import products
from kvtuner_core.runtime.head import Head
from kvtuner_core.runtime.products import HastenedLinear, hasten, hastens, is_linear, linear


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def hastened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, on any processor on which torch has oneDNN."""
    return _choose(monkeypatch, onednn=request.param)


@pytest.fixture
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By oneDNN, on any processor on which torch has it."""
    _choose(monkeypatch, onednn=True)


def _choose(monkeypatch: pytest.MonkeyPatch, *, onednn: bool) -> bool:
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "hastens", lambda: onednn)
    monkeypatch.setattr("kvtuner_core.runtime.head.hastens", lambda: onednn)
    return onednn


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
    "bias",
    [torch.arange(8.0)[::2], torch.ones(1).expand(4), torch.ones(1), torch.arange(12.0).view(3, 4)],
    ids=["strided", "expanded", "one", "of each row"],
)
def test_a_bias_is_added_as_it_is_seen(bias: torch.Tensor) -> None:
    states, weight = torch.randn(3, 8), torch.randn(4, 8)
    exact = states.double() @ weight.double().t() + bias.double()
    assert torch.allclose(linear(states, weight, bias).double(), exact, atol=1e-5)


@pytest.mark.usefixtures("hastened")
@pytest.mark.parametrize("shapes", [((8,), (4, 8)), ((3, 8), (8,)), ((8,), (8,)), ((3, 8), (0, 8)), ((2, 0), (4, 0))])
def test_shapes_are_what_torch_makes_of_them(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    states, weight = (torch.randn(shape) for shape in shapes)
    found, exact = linear(states, weight), nn.functional.linear(states, weight)
    assert found.shape == exact.shape
    assert torch.allclose(found, exact, atol=1e-5)


@pytest.mark.usefixtures("hastened")
@pytest.mark.parametrize("weight", [torch.ones(4, 7), torch.ones(4, 8).double()], ids=["shape", "dtype"])
def test_what_does_not_fit_is_refused_in_the_words_of_torch(weight: torch.Tensor) -> None:
    states = torch.randn(3, 8)
    with pytest.raises(RuntimeError) as expected:
        nn.functional.linear(states, weight)
    with pytest.raises(RuntimeError) as found:
        linear(states, weight)
    assert str(found.value) == str(expected.value)


Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _autocast(product: Linear, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return product(*tensors)


def _jvp(product: Linear, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    found: torch.Tensor = torch.func.jvp(product, tensors, tensors)[1]
    return found


def _dual(product: Linear, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.autograd.forward_ad.dual_level():
        states = torch.autograd.forward_ad.make_dual(tensors[0], tensors[0])
        found = torch.autograd.forward_ad.unpack_dual(product(states, *tensors[1:])).tangent
    return torch.zeros(()) if found is None else found


def _batched(product: Linear, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    one = torch.func.grad(lambda row: product(row, *tensors[1:]).square().sum())
    found: torch.Tensor = torch.vmap(one)(tensors[0])
    return found


def _twice(product: Linear, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    states, weight, bias = (tensor.clone().requires_grad_() for tensor in tensors)
    first = torch.autograd.grad(product(states, weight, bias).pow(3).sum(), (states, weight), create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), (states, weight, bias))
    return torch.cat([one.flatten() for one in second])


@pytest.mark.usefixtures("hastened")
@pytest.mark.parametrize("how", [_autocast, _jvp, _dual, _batched, _twice])
def test_what_torch_can_do_with_a_product_it_can_do_with_this_one(
    how: Callable[[Linear, tuple[torch.Tensor, ...]], torch.Tensor],
) -> None:
    torch.manual_seed(2)
    tensors = (torch.randn(5, 8), torch.randn(4, 8), torch.randn(4))
    found, expected = how(linear, tensors), how(nn.functional.linear, tensors)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("hastened")
def test_states_are_kept_for_a_gradient_of_the_weight_alone() -> None:
    """The weights of a loaded model want none: their inputs must not stay in memory, and may be changed in place."""
    kept: list[int] = []
    states, weight = torch.randn(5, 8).requires_grad_() * 1, torch.randn(4, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        product = linear(states, weight)
    assert kept == [weight.numel()]
    states.add_(1)
    product.sum().backward()
    with torch.inference_mode():
        seen = torch.randn(5, 8)
    bias = torch.zeros(4, requires_grad=True)
    linear(seen, weight, bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [5.0] * 4


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


def test_a_hastened_model_still_has_gradients_and_can_be_copied(hastened: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    states = torch.randn(3, 8)
    before = model(states)
    before.sum().backward()
    gradient = model[0].weight.grad.clone()
    hasten(model)
    model.zero_grad()
    assert type(model[0]) is (HastenedLinear if hastened else nn.Linear)
    assert is_linear(model[0])
    assert not is_linear(model[1])
    model(states).sum().backward()
    assert torch.allclose(model[0].weight.grad, gradient)
    twin = copy.deepcopy(model)
    twin[0].weight.data.zero_()
    with torch.inference_mode():
        assert torch.allclose(model(states), before, atol=1e-6)
        assert not torch.allclose(twin(states), before, atol=1e-3)


@pytest.mark.usefixtures("hastened")
def test_what_linear_layers_were_made_into_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(4, 4))
    hasten(model)
    assert type(model[0]) is Scaled
    assert not is_linear(model[0])


@pytest.mark.parametrize("rows", [0, 1, 600])
def test_the_head_makes_the_logits_of_its_matrix(hastened: bool, rows: int) -> None:
    torch.manual_seed(1)
    weight, bias, states = torch.randn(5000, 48), torch.randn(5000), torch.randn(rows, 48)
    with torch.inference_mode():
        found = Head(weight, bias).logits(states)
    exact = states.double() @ weight.double().t() + bias.double()
    assert found.shape == exact.shape
    assert float((found - exact).norm()) <= 1e-6 * float(exact.norm()), hastened


def _layer(columns: int = 40) -> HastenedLinear:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(72, columns))
    hasten(model)
    (layer,) = model
    assert isinstance(layer, HastenedLinear)
    return layer


@pytest.mark.usefixtures("_by_onednn")
@pytest.mark.parametrize("rows", [2, 24, 145])
def test_a_packed_weight_changes_no_bit(rows: int) -> None:
    layer, states = _layer(), torch.randn(rows, 72)
    assert len(layer.packed_parts()) == 1
    assert torch.equal(layer(states), linear(states, layer.weight, layer.bias))
    wanted = states.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(wanted).square().sum(), wanted)
    (plain,) = torch.autograd.grad(linear(wanted, layer.weight, layer.bias).square().sum(), wanted)
    assert torch.equal(gradient, plain)


@pytest.mark.usefixtures("_by_onednn")
@pytest.mark.parametrize("change", ["in place", "another", "loaded", "assigned", "moved", "data", "data twice"])
def test_a_weight_that_was_changed_is_packed_no_more(change: str) -> None:
    layer, states = _layer(), torch.randn(5, 72)
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "another":
            layer.weight = nn.Parameter(layer.weight + 1)
        elif change == "loaded":
            layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})
        elif change == "assigned":
            layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()}, assign=True)
        elif change.startswith("data"):
            # The second time the first one's memory would be at hand again.
            for _ in range(len(change.split())):
                layer.weight.data = layer.weight * 2
        else:
            layer.double().float()
    assert layer.packed_parts() == ()
    assert torch.allclose(layer(states), nn.functional.linear(states, layer.weight, layer.bias), atol=1e-5)


@pytest.mark.usefixtures("_by_onednn")
def test_what_is_written_past_autograd_is_seen_once_the_model_is_hastened_again() -> None:
    layer, states = _layer(), torch.randn(5, 72)
    layer.weight.data.mul_(2)
    hasten(layer)
    assert len(layer.packed_parts()) == 1
    assert torch.allclose(layer(states), nn.functional.linear(states, layer.weight, layer.bias), atol=1e-5)


@pytest.mark.usefixtures("_by_onednn")
@pytest.mark.parametrize("shape", [(72, 40), (0, 40), (72, 0)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_that_cannot_be_packed_are_multiplied_as_they_are(shape: tuple[int, int]) -> None:
    columns, inner = shape
    with torch.inference_mode():
        counted = nn.Linear(inner, columns)
    turned = nn.Linear(inner, columns)
    turned.weight = nn.Parameter(torch.randn(inner, columns).t())
    states = torch.randn(3, inner)
    for layer in (counted, turned) if all(shape) else (nn.Linear(inner, columns),):
        hasten(layer)
        assert not isinstance(layer, HastenedLinear) or layer.packed_parts() == ()
        with torch.inference_mode():
            exact = nn.functional.linear(states, layer.weight, layer.bias)
            assert torch.allclose(layer(states), exact, atol=1e-5)


@pytest.mark.usefixtures("_by_onednn")
def test_packing_takes_a_quarter_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 72 * 40
    for free, packs in ((4 * size - 1, False), (4 * size, True)):
        monkeypatch.setattr(products, "device_memory", lambda _device, free=free: (free, free))
        assert bool(_layer().packed_parts()) is packs


@pytest.mark.usefixtures("_by_onednn")
def test_a_wide_layer_is_packed_in_parts_which_the_head_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ONE_PIECE", 4000)
    layer, states = _layer(5000), torch.randn(7, 72)
    assert [part.shape[0] for part in layer.packed_parts()] == [2048, 2048, 904]
    assert torch.allclose(layer(states), nn.functional.linear(states, layer.weight, layer.bias), atol=1e-5)
    with torch.inference_mode():
        plain = Head(layer.weight, layer.bias).logits(states)
        found = Head(layer.weight, layer.bias, layer=layer).logits(states)
        assert torch.equal(found, plain)
        layer.weight.data = torch.zeros_like(layer.weight)
        layer.pack()
        assert torch.equal(Head(layer.weight, layer.bias, layer=layer).logits(states), layer.bias.expand(7, 5000))


@pytest.fixture
def _chosen_again() -> Iterator[None]:
    """The choice is made anew after the test, whatever came of it."""
    yield
    hastens.cache_clear()


@pytest.mark.usefixtures("_chosen_again")
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
