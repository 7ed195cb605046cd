import pytest
import torch

from kvtuner_core.runtime.head import Head, final_states
from tests.fakes.models import FAMILIES, tiny_model


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
