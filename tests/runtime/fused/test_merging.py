import torch
from torch import nn

from kvtuner_core.runtime.fused.merging import merged
from tests.fakes.models import tiny_model


def _layers(*, bias: bool) -> list[nn.Linear]:
    return [nn.Linear(6, outer, bias=bias) for outer in (5, 3, 4)]


def test_the_weights_are_held_once_and_stay_what_they_were():
    layers = _layers(bias=True)
    before = [(layer.weight, layer.weight.clone(), layer.bias.clone()) for layer in layers]
    with torch.inference_mode():
        weight, bias = merged(layers)
    assert torch.equal(weight, torch.cat([value for _, value, _ in before]))
    assert torch.equal(bias, torch.cat([value for _, _, value in before]))
    for layer, (parameter, value, _) in zip(layers, before, strict=True):
        assert layer.weight is parameter
        assert torch.equal(parameter, value)
        assert parameter.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    # What is learned later is seen in both.
    layers[1](torch.ones(2, 6)).sum().backward()
    with torch.no_grad():
        layers[1].weight.sub_(layers[1].weight.grad)
    assert torch.equal(weight[5:8], layers[1].weight)


def test_a_second_call_takes_what_is_merged_and_a_moved_layer_is_merged_again():
    layers = _layers(bias=False)
    first, bias = merged(layers)
    assert bias is None
    again, _ = merged(layers)
    assert again.data_ptr() == first.data_ptr()
    assert again.shape == (12, 6)
    layers[0].double().float()
    moved, _ = merged(layers)
    assert moved.data_ptr() != first.data_ptr()
    assert torch.equal(moved, first)


def test_a_merged_model_is_saved_and_loaded(tmp_path):
    model = tiny_model("qwen2")
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in model.model.layers:
        merged([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj])
        merged([layer.mlp.gate_proj, layer.mlp.up_proj])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
