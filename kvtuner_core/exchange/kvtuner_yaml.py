"""The original project's configuration files, layer-wise and head-wise.

A mapping from whole layer numbers to ``nbits_key`` and ``nbits_value``::

    0:
      nbits_key: 8
      nbits_value: 4

or, per head, to a mapping from whole head numbers to the same two keys. Such a file says nothing of
the scheme, so the reader has to be told.
"""

from typing import Any

import yaml

from kvtuner_core.domain.policy import MAX_LAYERS, KVPolicy, LayerPrecision
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.errors import PolicyError
from kvtuner_core.exchange.strict_json import one_line, read_text, shown

MAX_YAML_BYTES = 1024 * 1024
"""Largest YAML file that is read."""

_WHAT = "A kvtuner-yaml file"
_MAX_DEPTH = 4
_KEYS = ("nbits_key", "nbits_value")


def to_kvtuner_yaml(policy: KVPolicy) -> str:
    """The bits of ``policy`` as the original project writes them; its scheme is left out.

    A layer with bits per head is written per head, any other per layer.
    """
    lines = []
    for index, layer in enumerate(policy.layers):
        lines.append(f"{index}:")
        if not layer.heads:
            lines += _pair_lines(layer.pair, indent="  ")
        for head, pair in enumerate(layer.heads):
            lines += [f"  {head}:", *_pair_lines(pair, indent="    ")]
    return "\n".join(lines) + "\n"


def _pair_lines(pair: PrecisionPair, *, indent: str) -> list[str]:
    return [f"{indent}nbits_key: {pair.key_bits}", f"{indent}nbits_value: {pair.value_bits}"]


def from_kvtuner_yaml(text: str | bytes, *, scheme: QuantScheme) -> KVPolicy:
    """Read an original configuration file.

    Args:
        text: The file's content.
        scheme: Grouping and rounding, which the file does not say.

    Raises:
        PolicyError: One line that names the rule, the value, and the way out.
    """
    data = _load(read_text(text, what=_WHAT, limit=MAX_YAML_BYTES))
    layers = _numbered(data, name="layer", place="")
    return KVPolicy(scheme=scheme, layers=tuple(_layer(index, entry) for index, entry in enumerate(layers)))


def _load(text: str) -> Any:
    try:
        scalars = _check_events(text)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = one_line(error.problem or "not readable")
        raise PolicyError(f"{_WHAT} must be YAML; line {line}: {problem}. Correct it.") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError):
        # PyYAML constructs dates and numbers with plain Python, whose errors it lets through.
        raise PolicyError(f"{_WHAT} must be YAML of plain whole numbers; this one is not. Correct it.") from None
    if data is not None and _count(data) != scalars:
        raise PolicyError(f"{_WHAT} may name each key once and merge none; one is repeated. Remove it.")
    return data


def _check_events(text: str) -> int:
    """Refuse what multiplies or recurses; return the number of scalars."""
    depth = scalars = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise PolicyError(f"{_WHAT} may have no anchors or aliases; got one. Write the entry out.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise PolicyError(f"{_WHAT} may have no tags; got {shown(tag)}. Remove it.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        scalars += isinstance(event, yaml.ScalarEvent)
        if depth > _MAX_DEPTH:
            raise PolicyError(f"{_WHAT} may nest {_MAX_DEPTH} levels deep; this one is deeper. Use another file.")
    return scalars


def _count(data: Any) -> int:
    if isinstance(data, dict):
        return len(data) + sum(_count(value) for value in data.values())
    if isinstance(data, list):
        return sum(_count(value) for value in data)
    return 1


def _numbered(data: Any, *, name: str, place: str) -> list[Any]:
    if not isinstance(data, dict) or not data:
        raise PolicyError(f"{_WHAT}{place} must map {name} numbers to their bits; got {shown(data)}. Correct it.")
    if len(data) > MAX_LAYERS:
        raise PolicyError(f"{_WHAT}{place} may have {MAX_LAYERS} {name}s; got {len(data)}. Use another file.")
    for key in data:
        if type(key) is not int:
            raise PolicyError(f"{_WHAT}{place} must have whole {name} numbers as keys; got {shown(key)}. Correct it.")
    missing = [index for index in range(len(data)) if index not in data]
    if missing:
        raise PolicyError(
            f"{_WHAT}{place} must have every {name} from 0 to {len(data) - 1}; {name} {missing[0]} is missing. Add it."
        )
    return [data[index] for index in range(len(data))]


def _layer(index: int, entry: Any) -> LayerPrecision:
    place = f", layer {index},"
    if isinstance(entry, dict) and not any(isinstance(key, str) for key in entry):
        heads = _numbered(entry, name="head", place=place)
        return LayerPrecision(heads=tuple(_pair(pair, f"{place} head {head},") for head, pair in enumerate(heads)))
    return LayerPrecision(pair=_pair(entry, place))


def _pair(entry: Any, place: str) -> PrecisionPair:
    if not isinstance(entry, dict) or set(entry) != set(_KEYS):
        found = ", ".join(shown(key) for key in list(entry)[:4]) if isinstance(entry, dict) else shown(entry)
        raise PolicyError(f"{_WHAT}{place} must have nbits_key and nbits_value, no more; got {found}. Correct it.")
    for key in _KEYS:
        if type(entry[key]) is not int or abs(entry[key]) > 99:
            raise PolicyError(f"{_WHAT}{place} must give {key} as 16, 8, 4, 3 or 2; got {shown(entry[key])}.")
    try:
        return PrecisionPair(key_bits=entry["nbits_key"], value_bits=entry["nbits_value"])
    except PolicyError as error:
        raise PolicyError(f"{_WHAT}{place} {error}") from None
