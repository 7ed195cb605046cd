"""The policies beside every result."""

from kvtuner_core.tuning import baselines
from tests.tuning.builders import SCHEME


def test_the_baselines_are_uniform_and_start_unquantised():
    policies = baselines(layers=3, scheme=SCHEME)
    assert [policy.name for policy in policies] == ["K16V16", "K8V8", "K8V4", "K4V4", "K4V2", "K2V2"]
    assert all(len(policy.layers) == 3 and policy.scheme == SCHEME for policy in policies)
