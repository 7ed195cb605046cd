"""Scores, profiles and identities to store."""

import math

from kvtuner_core.domain.metrics import ErrorProfile, Interval, PolicyScore
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.store import SessionIdentity

PROVENANCE = Provenance(
    created="2026-11-01T10:00:00+00:00",
    device="cpu (2 threads)",
    device_type="cpu",
    dtype="float32",
    versions=(("torch", "2.13.0"), ("python", "3.11.7")),
)


def session(**changes):
    parts = {
        "fingerprint": "f" * 64,
        "device_type": "cpu",
        "dtype": "float32",
        "prompts_digest": "d" * 64,
        "prefix_tokens": 512,
        "suffix_tokens": 24,
        "scheme": QuantScheme.per_token(),
        "seed": 0,
    }
    return SessionIdentity(**(parts | changes))


def score(kl=0.1, *, cache_bytes=12345678901):
    return PolicyScore(
        kl=Interval(mean=kl, low=kl / 3, high=kl * 3),
        top1_agreement=0.9375,
        nll_change=-0.001,
        kl_per_prompt=(kl, 1e-300, 0.1 + 0.2),
        tokens_per_prompt=(24, 24, 7),
        cache_bytes=cache_bytes,
        seconds=0.25,
    )


def profile(layer=3, pair="K4V2", *, kl=math.pi):
    return ErrorProfile(
        layer=layer,
        pair=PrecisionPair.parse(pair),
        key_error=0.1,
        value_error=0.2,
        score_error=0.3,
        output_error=math.inf,
        kl=kl,
    )
