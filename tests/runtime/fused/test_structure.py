import pytest
import torch
import transformers as tf
from torch import nn

from kvtuner_core.errors import ModelError
from kvtuner_core.runtime import products
from kvtuner_core.runtime.fused.structure import structure_of
from tests.fakes.models import tiny_model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3"])
def test_known_families_are_recognised(family):
    model = tiny_model(family)
    found = structure_of(model)
    assert len(found.blocks) == len(found.norms) - 1 == model.config.num_hidden_layers
    block, attention = found.blocks[1], model.model.layers[1].self_attn
    assert block.attention is attention
    assert (block.heads.bias is not None) == (family == "qwen2")
    assert block.heads.queries * block.heads.dim == attention.q_proj.out_features
    assert torch.equal(block.projection[: attention.q_proj.out_features], attention.q_proj.weight)
    assert (block.after_mlp is not None) == found.norms[0].offset == (family == "gemma3")


def test_hastened_linear_layers_are_plain_ones(monkeypatch):
    """A model that was loaded on a CPU can be moved to a GPU."""
    monkeypatch.setattr(products, "hastens", lambda: True)
    model = tiny_model("llama")
    products.hasten(model)
    assert type(model.lm_head) is products.HastenedLinear
    assert structure_of(model).head is model.lm_head


@pytest.mark.parametrize("family", ["phi", "gpt_neox", "gemma2"])
def test_others_are_not(family):
    with pytest.raises(ModelError, match="not among the families"):
        structure_of(tiny_model(family))


def _hook(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def _patch(model):
    model.model.layers[0].self_attn.forward = model.model.layers[1].self_attn.forward


def _adapter(model):
    layer = model.model.layers[2].mlp
    layer.down_proj = nn.Sequential(layer.down_proj)


def _addition(model):
    model.model.layers[0].extra = nn.Identity()


def _bias(model):
    layer = model.model.layers[0].self_attn
    layer.q_proj = nn.Linear(layer.q_proj.in_features, layer.q_proj.out_features)


def _norm(model):
    model.model.norm = nn.LayerNorm(model.config.hidden_size)


def _half(model):
    model.lm_head.half()


def _activation(model):
    model.config.hidden_act = "relu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hook, r"layers\.1\.mlp has a hook"),
        (_patch, r"layers\.0\.self_attn has a hook or a forward of its own"),
        (_adapter, "a Sequential stands where a plain linear layer"),
        (_addition, "holds extra beside"),
        (_bias, "only some of the queries"),
        (_norm, "a LayerNorm stands where a norm of its family"),
        (_half, "differ in dtype or device"),
        (_activation, "activation is relu"),
    ],
)
def test_a_changed_model_is_not(change, reason):
    model = tiny_model("llama")
    change(model)
    with pytest.raises(ModelError, match=reason):
        structure_of(model)


def test_a_class_of_another_module_is_not():
    class LlamaForCausalLM(tf.LlamaForCausalLM):
        pass

    model = LlamaForCausalLM(tiny_model("llama").config)
    with pytest.raises(ModelError, match="not among the families"):
        structure_of(model)
