"""Between the domain's values and the entries of ``policy.json``, field by field."""

from collections.abc import Sequence
from typing import Any

from kvtuner_core.domain.document import BaselineEvidence, Evidence, ModelIdentity, PolicyDocument
from kvtuner_core.domain.metrics import Interval
from kvtuner_core.domain.model import LayerGeometry
from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import FULL_PAIR, PrecisionPair
from kvtuner_core.domain.provenance import Provenance
from kvtuner_core.domain.scheme import Granularity, QuantScheme, Rotation, ScaleDtype
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange.policy_models import (
    FORMAT,
    VERSION,
    EvidenceEntry,
    GeometryEntry,
    IntervalEntry,
    LayerEntry,
    ModelEntry,
    PolicyFile,
    PromptsEntry,
    ProvenanceEntry,
    SchemeEntry,
)


def entry_of(document: PolicyDocument) -> PolicyFile:
    """The document as the file's entries.

    Raises:
        pydantic.ValidationError: If a value is outside the format.
    """
    return PolicyFile.model_validate(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": _model_data(document.model, len(document.policy.layers)),
            "scheme": _scheme_data(document.policy.scheme),
            "layers": [_layer_data(index, layer) for index, layer in enumerate(document.policy.layers)],
            "memory": {
                "nominal_bits": document.nominal_bits,
                "effective_bits": document.effective_bits,
                "bytes_per_token": document.bytes_per_token,
            },
            "evidence": _evidence_data(document.evidence) if document.evidence else None,
            "provenance": _provenance_data(document.provenance) if document.provenance else None,
            "origin": document.origin,
            "notes": dict(document.notes),
        }
    )


def document_of(entry: PolicyFile) -> PolicyDocument:
    """The file's entries as a document.

    Raises:
        PolicyError: If layers or heads are out of order, missing, or contradict each other.
        SchemeError: If the scheme contradicts itself.
    """
    _check_order([layer.layer for layer in entry.layers], name="layers", what="layer")
    if entry.model.layers != len(entry.layers):
        raise PolicyError(
            f"layers must have one entry for each of the model's {entry.model.layers} layers; "
            f"got {len(entry.layers)}. Use a policy made for this model."
        )
    return PolicyDocument(
        policy=KVPolicy(scheme=_scheme(entry.scheme), layers=tuple(_layer(layer) for layer in entry.layers)),
        model=_model(entry.model),
        nominal_bits=entry.memory.nominal_bits,
        effective_bits=entry.memory.effective_bits,
        bytes_per_token=entry.memory.bytes_per_token,
        evidence=_evidence(entry.evidence) if entry.evidence else None,
        provenance=_provenance(entry.provenance) if entry.provenance else None,
        origin=entry.origin,
        notes=tuple(entry.notes.items()),
    )


def _check_order(indices: Sequence[int], *, name: str, what: str) -> None:
    for expected, index in enumerate(indices):
        if index != expected:
            raise PolicyError(
                f"{name} must list every {what} once, in order from 0; entry {expected} is {what} {index}. Sort them."
            )


def _model_data(model: ModelIdentity, layers: int) -> dict[str, Any]:
    geometry = [
        {
            "layer": index,
            "type": "full_attention" if shape.sliding_window is None else "sliding_attention",
            "kv_heads": shape.kv_heads,
            "key_dim": shape.key_dim,
            "value_dim": shape.value_dim,
            "sliding_window": shape.sliding_window,
        }
        for index, shape in enumerate(model.layers)
    ]
    return {"id": model.id, "fingerprint": model.fingerprint, "layers": layers, "geometry": geometry}


def _model(entry: ModelEntry) -> ModelIdentity:
    _check_order([shape.layer for shape in entry.geometry], name="model.geometry", what="layer")
    if entry.geometry and len(entry.geometry) != entry.layers:
        raise PolicyError(
            f"model.geometry must have one entry for each of the {entry.layers} layers, or none; "
            f"got {len(entry.geometry)}. Add the missing ones or leave it empty."
        )
    return ModelIdentity(
        id=entry.id, fingerprint=entry.fingerprint, layers=tuple(_shape(shape) for shape in entry.geometry)
    )


def _shape(entry: GeometryEntry) -> LayerGeometry:
    if (entry.type == "sliding_attention") != (entry.sliding_window is not None):
        raise PolicyError(
            f"model.geometry[{entry.layer}] has a sliding_window exactly where its type is sliding_attention; "
            f"got {entry.type} and {entry.sliding_window}. Correct one of the two."
        )
    return LayerGeometry(
        kv_heads=entry.kv_heads,
        key_dim=entry.key_dim,
        value_dim=entry.value_dim,
        sliding_window=entry.sliding_window,
    )


def _scheme_data(scheme: QuantScheme) -> dict[str, Any]:
    # What came later is written only where it is used, so that older programs read the other files.
    later: dict[str, Any] = {}
    if scheme.residual_share:
        later["residual_share"] = scheme.residual_share
    if scheme.rotation is not Rotation.NONE:
        later["rotation"] = scheme.rotation.value
    return {
        "key_granularity": scheme.key_granularity.value,
        "value_granularity": scheme.value_granularity.value,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "residual_length": scheme.residual_length,
        "sink_length": scheme.sink_length,
        "scale_dtype": scheme.scale_dtype.value,
    } | later


def _scheme(entry: SchemeEntry) -> QuantScheme:
    return QuantScheme(
        key_granularity=Granularity(entry.key_granularity),
        value_granularity=Granularity(entry.value_granularity),
        group_size=entry.group_size,
        symmetric=entry.symmetric,
        residual_length=entry.residual_length,
        sink_length=entry.sink_length,
        scale_dtype=ScaleDtype(entry.scale_dtype),
        residual_share=entry.residual_share,
        rotation=Rotation(entry.rotation),
    )


def _layer_data(index: int, layer: LayerPrecision) -> dict[str, Any]:
    data: dict[str, Any] = {"layer": index}
    if not layer.heads or layer.pair != FULL_PAIR:
        data |= {"key_bits": layer.pair.key_bits, "value_bits": layer.pair.value_bits}
    if layer.heads:
        data["heads"] = [
            {"head": head, "key_bits": pair.key_bits, "value_bits": pair.value_bits}
            for head, pair in enumerate(layer.heads)
        ]
    return data


def _layer(entry: LayerEntry) -> LayerPrecision:
    if (entry.key_bits is None) != (entry.value_bits is None) or (entry.key_bits is None and entry.heads is None):
        raise PolicyError(
            f"layers[{entry.layer}] needs key_bits and value_bits, or heads; "
            f"got key_bits {entry.key_bits} and value_bits {entry.value_bits}. Add what is missing."
        )
    pair = FULL_PAIR
    if entry.key_bits is not None and entry.value_bits is not None:
        pair = PrecisionPair(key_bits=entry.key_bits, value_bits=entry.value_bits)
    heads = entry.heads or []
    _check_order([head.head for head in heads], name=f"layers[{entry.layer}].heads", what="head")
    return LayerPrecision(
        pair=pair, heads=tuple(PrecisionPair(key_bits=head.key_bits, value_bits=head.value_bits) for head in heads)
    )


def _interval_data(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _interval(entry: IntervalEntry, name: str) -> Interval:
    if entry.low > entry.high:
        raise PolicyError(f"{name} must have low up to high; got {entry.low} and {entry.high}. Swap the two.")
    return Interval(mean=entry.mean, low=entry.low, high=entry.high)


def _evidence_data(evidence: Evidence) -> dict[str, Any]:
    data = {
        "objective": evidence.objective,
        "calibration_prompts": _prompts_data(evidence.calibration_prompts),
        "calibration_kl": _interval_data(evidence.calibration_kl),
        "evaluation_kl": _interval_data(evidence.evaluation_kl) if evidence.evaluation_kl else None,
        "top1_agreement": evidence.top1_agreement,
        "nll_change": evidence.nll_change,
        "baselines": [
            {"name": item.name, "effective_bits": item.effective_bits, "kl": _interval_data(item.kl)}
            for item in evidence.baselines
        ],
    }
    if any(evidence.evaluation_prompts):
        data["evaluation_prompts"] = _prompts_data(evidence.evaluation_prompts)
    return data


def _prompts_data(prompts: tuple[str, str]) -> dict[str, str]:
    name, digest = prompts
    return {"name": name, "digest": digest}


def _prompts(entry: PromptsEntry | None) -> tuple[str, str]:
    return (entry.name, entry.digest) if entry else ("", "")


def _evidence(entry: EvidenceEntry) -> Evidence:
    return Evidence(
        objective=entry.objective,
        calibration_prompts=_prompts(entry.calibration_prompts),
        calibration_kl=_interval(entry.calibration_kl, "evidence.calibration_kl"),
        evaluation_prompts=_prompts(entry.evaluation_prompts),
        evaluation_kl=_interval(entry.evaluation_kl, "evidence.evaluation_kl") if entry.evaluation_kl else None,
        top1_agreement=entry.top1_agreement,
        nll_change=entry.nll_change,
        baselines=tuple(
            BaselineEvidence(
                name=item.name,
                effective_bits=item.effective_bits,
                kl=_interval(item.kl, f"evidence.baselines[{index}].kl"),
            )
            for index, item in enumerate(entry.baselines)
        ),
    )


def _provenance_data(provenance: Provenance) -> dict[str, Any]:
    return {
        "created": provenance.created,
        "device": provenance.device,
        "device_type": provenance.device_type,
        "dtype": provenance.dtype,
        "versions": dict(provenance.versions),
    }


def _provenance(entry: ProvenanceEntry) -> Provenance:
    return Provenance(
        created=entry.created,
        device=entry.device,
        device_type=entry.device_type,
        dtype=entry.dtype,
        versions=tuple(entry.versions.items()),
    )
