import hashlib
import json

import pytest

from kvtuner_core.domain.metrics import METRIC_VERSION
from kvtuner_core.domain.model import ModelInfo, ModelSpec
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair
from kvtuner_core.domain.prompts import Prompt, PromptRole, PromptSet
from kvtuner_core.domain.scheme import QuantScheme, Rotation, ScaleDtype
from kvtuner_core.domain.tasks import EvaluationSpec, ModelReport
from kvtuner_core.store import Identity, SessionIdentity
from tests.fakes.measurements import PROVENANCE, session

K4V2 = PrecisionPair.parse("K4V2")
POLICY = KVPolicy.uniform("K4V2", layers=3, scheme=QuantScheme.per_token())


def test_a_key_is_the_digest_of_canonical_json():
    assert Identity.of({"b": 1, "a": [None, 0.5]}).text == '{"a":[null,0.5],"b":1}'
    assert Identity.of({"a": 1}).key == hashlib.sha256(b'{"a":1}').hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "e" * 64},
        {"device_type": "cuda"},
        {"dtype": "bfloat16"},
        {"prompts_digest": "c" * 64},
        {"prefix_tokens": 511},
        {"suffix_tokens": 25},
    ],
    ids=str,
)
def test_what_changes_the_number_changes_the_key(change):
    assert session(**change).score(POLICY).key != session().score(POLICY).key
    assert session(**change).profile(0, K4V2).key != session().profile(0, K4V2).key


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme.per_token(group_size=32),
        QuantScheme.per_token(symmetric=True),
        QuantScheme.per_token(residual_length=8),
        QuantScheme.per_token(sink_length=4),
        QuantScheme.per_token(residual_share=0.1),
        QuantScheme.per_token(rotation=Rotation.KEYS),
        QuantScheme.kivi(),
        QuantScheme(
            key_granularity=QuantScheme.per_token().key_granularity,
            value_granularity=QuantScheme.per_token().value_granularity,
            scale_dtype=ScaleDtype.FLOAT32,
        ),
    ],
    ids=lambda scheme: scheme.label,
)
def test_the_scheme_is_part_of_the_key(scheme):
    other = KVPolicy(scheme=scheme, layers=POLICY.layers)
    assert session().score(other).key != session().score(POLICY).key
    assert session(scheme=scheme).profile(0, K4V2).key != session().profile(0, K4V2).key


def test_what_a_scheme_does_not_use_is_not_named_so_that_older_keys_stay():
    text = session().score(POLICY).text
    assert "residual_share" not in text
    assert "rotation" not in text


def test_every_layers_bits_are_part_of_the_key():
    pairs = [layer.pair for layer in POLICY.layers]
    keys = {
        session().score(KVPolicy.from_pairs(changed, scheme=POLICY.scheme)).key
        for changed in (pairs, [FULL_PAIR, *pairs[1:]], [*pairs[:2], FULL_PAIR], pairs[:2])
    }
    assert len(keys) == 4
    assert session().profile(1, K4V2).key != session().profile(0, K4V2).key
    assert session().profile(0, FULL_PAIR).key != session().profile(0, K4V2).key


def test_the_seed_draws_the_interval_of_a_score_and_nothing_of_a_profile():
    assert session(seed=1).score(POLICY).key != session().score(POLICY).key
    assert session(seed=1).profile(0, K4V2).key == session().profile(0, K4V2).key


def test_the_scheme_does_not_matter_where_nothing_is_quantised():
    full = [KVPolicy.uniform("KV16", layers=2, scheme=scheme) for scheme in (QuantScheme.kivi(), POLICY.scheme)]
    assert session().score(full[0]).key == session().score(full[1]).key
    assert session(scheme=QuantScheme.kivi()).profile(0, FULL_PAIR).key == session().profile(0, FULL_PAIR).key


def test_bits_per_head_that_are_alike_are_the_layers_pair():
    alike = KVPolicy(scheme=POLICY.scheme, layers=(LayerPrecision(heads=(K4V2, K4V2)),) * 3)
    mixed = KVPolicy(scheme=POLICY.scheme, layers=(LayerPrecision(heads=(K4V2, FULL_PAIR)),) * 3)
    assert session().score(alike).key == session().score(POLICY).key
    assert session().score(mixed).key != session().score(POLICY).key


def test_a_score_and_a_profile_never_share_a_key():
    one = KVPolicy.uniform("K4V2", layers=1, scheme=POLICY.scheme)
    assert session().score(one).key != session().profile(0, K4V2).key


def test_the_session_of_an_evaluation_names_texts_and_device_and_not_their_names():
    info = ModelInfo(
        reference="here",
        name="tiny",
        architecture="LlamaForCausalLM",
        fingerprint="f" * 64,
        geometry_digest="g",
        layers=(),
        query_heads=1,
        hidden_size=1,
        max_positions=1,
        vocabulary=1,
    )
    report = ModelReport(info=info, provenance=PROVENANCE, free_bytes=1, total_bytes=2)
    prompts = PromptSet(name="mine", role=PromptRole.USER, prompts=(Prompt(text="a"),))
    evaluation = EvaluationSpec(
        model=ModelSpec(reference="there"),
        prompts=prompts,
        scheme=QuantScheme.per_token(),
        prefix_tokens=512,
        suffix_tokens=24,
    )
    found = SessionIdentity.of(report, evaluation)
    assert found == session(prompts_digest=prompts.digest)
    text = found.score(POLICY).text
    assert "mine" not in text
    assert "there" not in text
    assert json.loads(text)["metric_version"] == METRIC_VERSION
