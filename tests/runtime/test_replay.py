import torch

from kvtuner_core.domain.policy import LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.runtime.session import Session
from tests.fakes.models import tiny_model
from tests.runtime.test_session import TEXTS, make_loaded, make_spec


def _layers(*names):
    return tuple(LayerPrecision(pair=PrecisionPair.parse(name)) for name in names)


def test_policies_run_together_as_they_run_alone():
    session = Session(make_loaded(tiny_model("mistral")), make_spec(QuantScheme.kivi(group_size=4, residual_length=1)))
    policies = [_layers("KV16", "K2V2", "KV16"), _layers("KV16", "KV16", "KV4"), _layers("KV8", "KV16", "K2V16")]
    together = session.diverge(policies)
    for policy, moved in zip(policies, together, strict=True):
        (alone,) = session.diverge([policy])
        for index in range(len(TEXTS)):
            torch.testing.assert_close(torch.tensor(moved[index].kl), torch.tensor(alone[index].kl), rtol=1e-6, atol=0)
