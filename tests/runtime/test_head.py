import pytest
import torch

from kvtuner_core.runtime import head as module
from kvtuner_core.runtime.head import Head, final_states
from tests.fakes.models import FAMILIES, tiny_model

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_or_left_to_the_model(family):
    model = tiny_model(family)
    head = Head.of(model)
    assert (head is None) == (family == "gemma2")
    if head is not None:
        ids = torch.arange(40)[None]
        with torch.inference_mode():
            found = head.logits(final_states(model, input_ids=ids)[0])
            torch.testing.assert_close(found, model(ids).logits[0], rtol=0, atol=1e-5)


def test_vocabularies_beyond_a_chunk_come_out_whole():
    weight, hidden = torch.randn(5001, 16), torch.randn(7, 16)
    bias = torch.randn(5001)
    head = Head(weight, bias)
    torch.testing.assert_close(head.logits(hidden), hidden @ weight.T + bias)
    torch.testing.assert_close(head.logits(hidden[:3]), hidden[:3] @ weight.T + bias)


def test_bfloat16_states_give_float32_logits():
    weight, hidden = torch.randn(50, 16).bfloat16(), torch.randn(3, 16).bfloat16()
    found = Head(weight, None).logits(hidden)
    torch.testing.assert_close(found, hidden.float() @ weight.float().T)


@pytest.mark.parametrize("hastened", [False, pytest.param(True, marks=onednn)])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.03)]
)
def test_gradients_of_states_are_those_of_whole_logits(family, dtype, tolerance, hastened, monkeypatch):
    monkeypatch.setattr(module, "hastens", lambda: hastened)
    # 40 rows in pieces of 11, the last of 7, each in blocks of 4.
    monkeypatch.setattr(module, "_GRADIENT_VALUES", 259 * 11)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 259 * 4)
    model = tiny_model(family).to(dtype)
    head = Head.of(model)
    states = final_states(model, input_ids=torch.arange(40)[None])[0]
    labels = torch.arange(100, 140)
    own = model.get_output_embeddings()(states)
    loss = torch.nn.functional.cross_entropy(own.to(torch.promote_types(dtype, torch.float32)), labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, states, retain_graph=True)
    for _ in range(2):
        found = head.loss_gradient(states, labels)
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    # A graph takes it as a gradient, though it was made in inference mode.
    torch.autograd.grad(states, next(model.parameters()), found)


def test_a_gradient_holds_no_whole_logits():
    head = Head(torch.randn(49153, 4), None)
    head.loss_gradient(torch.randn(1500, 4), torch.zeros(1500, dtype=torch.long))
    assert head._buffer.nbytes <= 4 * module._GRADIENT_VALUES < 4 * 1500 * 49153
