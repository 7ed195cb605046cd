"""Random documents for the tests of policy files."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from kvtuner_core.domain.document import BaselineEvidence, Evidence, ModelIdentity, PolicyDocument
from kvtuner_core.domain.memory import bytes_per_token, effective_bits
from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_PAIR, candidate_pairs
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scheme import Granularity, QuantScheme, Rotation, ScaleDtype
from tests.fakes.studies import model_info, provenance, search_result

PAIRS = st.sampled_from(candidate_pairs((16, 8, 4, 3, 2)))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)
SCHEMES = st.builds(
    QuantScheme,
    key_granularity=st.sampled_from(Granularity),
    value_granularity=st.sampled_from(Granularity),
    group_size=st.sampled_from([8, 16, 32, 128]),
    symmetric=st.booleans(),
    residual_length=st.integers(0, 300),
    sink_length=st.integers(0, 8),
    scale_dtype=st.sampled_from(ScaleDtype),
    residual_share=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    rotation=st.sampled_from(Rotation),
)
INTERVALS = st.tuples(FINITE, FINITE, FINITE).map(
    lambda numbers: Interval(mean=numbers[0], low=min(numbers[1:]), high=max(numbers[1:]))
)
PROMPTS = st.tuples(TEXTS, TEXTS)
EVIDENCE = st.builds(
    Evidence,
    objective=TEXTS,
    calibration_prompts=PROMPTS,
    calibration_kl=INTERVALS,
    evaluation_prompts=PROMPTS,
    evaluation_kl=st.none() | INTERVALS,
    top1_agreement=st.none() | st.floats(0, 1),
    nll_change=st.none() | FINITE,
    baselines=st.lists(
        st.builds(BaselineEvidence, name=TEXTS, effective_bits=st.floats(1, 16), kl=INTERVALS), max_size=3
    ).map(tuple),
)
PROVENANCE = st.builds(
    Provenance,
    created=TEXTS,
    device=TEXTS,
    device_type=TEXTS,
    dtype=TEXTS,
    versions=st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda items: tuple(items.items())),
)


@st.composite
def layers(draw, kv_heads):
    heads = st.lists(PAIRS, min_size=kv_heads, max_size=kv_heads).map(tuple)
    own = st.builds(LayerPrecision, pair=PAIRS)
    per_head = st.builds(LayerPrecision, pair=PAIRS | st.just(FULL_PAIR), heads=heads)
    return tuple(draw(st.lists(own | per_head, min_size=1, max_size=5)))


@st.composite
def documents(draw):
    kv_heads = draw(st.integers(1, 4))
    policy = KVPolicy(scheme=draw(SCHEMES), layers=draw(layers(kv_heads)))
    shape = st.builds(
        LayerGeometry,
        kv_heads=st.just(kv_heads),
        key_dim=st.sampled_from([32, 64, 128]),
        value_dim=st.sampled_from([32, 64]),
        sliding_window=st.none() | st.integers(1, 4096),
    )
    shapes = tuple(draw(shape) for _ in policy.layers) if draw(st.booleans()) else ()
    return PolicyDocument(
        policy=policy,
        model=ModelIdentity(id=draw(TEXTS), fingerprint=draw(TEXTS), layers=shapes),
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, shapes) if shapes else None,
        bytes_per_token=bytes_per_token(policy, shapes) if shapes else None,
        evidence=draw(st.none() | EVIDENCE),
        provenance=draw(st.none() | PROVENANCE),
        origin=draw(TEXTS),
        notes=tuple(draw(st.dictionaries(TEXTS, TEXTS, max_size=3)).items()),
    )


def example(*, layers: int = 30, heads: bool = False) -> PolicyDocument:
    """The document of a searched policy, as the program writes it."""
    result = search_result(layers=layers)
    info = model_info(layers)
    chosen = result.front[len(result.front) // 2]
    policy = chosen.policy
    if heads:
        first = LayerPrecision(heads=tuple(candidate_pairs((8, 4)))[:3])
        scheme = replace(policy.scheme, residual_share=0.1, rotation=Rotation.KEYS)
        policy = KVPolicy(scheme=scheme, layers=(first, *policy.layers[1:]))
    return PolicyDocument(
        policy=policy,
        model=ModelIdentity.of(info),
        nominal_bits=policy.nominal_bits,
        effective_bits=effective_bits(policy, info.layers),
        bytes_per_token=bytes_per_token(policy, info.layers),
        evidence=Evidence(
            objective="mean KL(full || quantised) in nats per token",
            calibration_prompts=("calibration", "c" * 64),
            calibration_kl=chosen.calibration.kl,
            evaluation_prompts=("evaluation", "e" * 64),
            evaluation_kl=chosen.kl,
            top1_agreement=chosen.calibration.top1_agreement,
            nll_change=chosen.calibration.nll_change,
            baselines=tuple(
                BaselineEvidence(name=item.policy.name, effective_bits=item.effective_bits, kl=item.kl)
                for item in result.baselines
            ),
        ),
        provenance=provenance(),
        origin=f"run {result.run}",
        notes=(("budget", "4.5 bits"),),
    )


def is_one_line(message: str) -> bool:
    return 0 < len(message) < 600 and len(message.splitlines()) == 1 and message.isprintable()


NOT_FINITE = (math.nan, math.inf, -math.inf)
