"""Where model work runs: in this process, or on Dask workers."""

from kvtuner_core.compute.dask_compute import DaskCompute
from kvtuner_core.compute.inline import InlineCompute

__all__ = ["DaskCompute", "InlineCompute"]
