"""KVTuner: how many bits should each layer's keys and values get?

The face of the library; everything here loads on first use, so that importing it costs nothing::

    from kvtuner_core import load_policy

    cache = load_policy("policy.json").build_cache(model)
    model.generate(**inputs, past_key_values=cache)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtuner_core.domain.document import PolicyDocument
    from kvtuner_core.domain.memory import cache_bytes, effective_bits
    from kvtuner_core.domain.policy import KVPolicy, LayerPrecision
    from kvtuner_core.domain.precision import PrecisionPair
    from kvtuner_core.domain.scheme import Granularity, PrefillMode, QuantScheme
    from kvtuner_core.errors import KVTunerError
    from kvtuner_core.runtime.cache import QuantizedKVCache, build_cache
    from kvtuner_core.runtime.geometry import layer_geometry
    from kvtuner_core.services.policies import LoadedPolicy, load_policy

__version__ = "0.1.0"

__all__ = [
    "Granularity",
    "KVPolicy",
    "KVTunerError",
    "LayerPrecision",
    "LoadedPolicy",
    "PolicyDocument",
    "PrecisionPair",
    "PrefillMode",
    "QuantScheme",
    "QuantizedKVCache",
    "build_cache",
    "cache_bytes",
    "effective_bits",
    "layer_geometry",
    "load_policy",
]

_HOMES = {
    "domain.document": ("PolicyDocument",),
    "domain.memory": ("cache_bytes", "effective_bits"),
    "domain.policy": ("KVPolicy", "LayerPrecision"),
    "domain.precision": ("PrecisionPair",),
    "domain.scheme": ("Granularity", "PrefillMode", "QuantScheme"),
    "errors": ("KVTunerError",),
    "runtime.cache": ("QuantizedKVCache", "build_cache"),
    "runtime.geometry": ("layer_geometry",),
    "services.policies": ("LoadedPolicy", "load_policy"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
