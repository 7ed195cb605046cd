"""The bytes that a session needs, reckoned before any of them is taken, and what is kept where.

What a session would like to keep is every prompt's exact prefix and its quantised prefixes as values
that can be read at once. Where that does not fit, the packed codes are kept in place of the values;
on a GPU the exact prefixes then move to the host; and last, what was used longest ago is quantised
anew each time. The numbers are the same in every case; only time differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from kvtuner_core.domain.memory import effective_bits
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.tasks import PROFILED_TOKENS
from kvtuner_core.errors import ComputeError
from kvtuner_core.runtime.bank import Storage
from kvtuner_core.runtime.loading import LoadedModel
from kvtuner_core.runtime.prompts import CutPrompt
from kvtuner_core.runtime.provenance import captured_memory, device_memory

CHUNK_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Prompt tokens that are read at once. Of a prompt that is longer than that on a GPU fewer, for then every
layer is given a mask of as many rows."""

GATHERED_BYTES = {"cpu": 0, "cuda": 1 << 28}
"""Up to so many bytes of one layer's keys the policies of a pass are copied together and attended to at once:
on a GPU launches cost more than copies."""

_SMALLEST_CHUNK = 512
_MASK_BYTES = 1 << 30
_WIDTHS = (8, 4, 3, 2)
_USABLE = 0.9
_BANK_SHARE = {"cpu": 0.25, "cuda": 1.0}
_BATCH_SHARE = 1 / 16
_PASS_OPERATIONS = 1.5e12
_PASS_ROWS = (1024, 8192)
_LOGITS_BYTES = 1 << 31
_WEIGHTS_SHARE = 1 / 8
_WEIGHTS_KEPT = 10
_LAYER_COPIES = 32
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a session keeps, and where.

    Attributes:
        pass_rows: Suffix tokens of one pass that fill the device; the policies of a pass follow from them.
        batch_tokens: Most prefix tokens of prompts that are scored together; a longer prompt is alone.
        storage: How quantised prefixes are kept.
        on_host: Whether exact prefixes lie in the host's memory, away from the GPU.
        bank_bytes: Most bytes of quantised prefixes, over all prompts.
        weights_bytes: Most bytes of attention weights that the local errors of a layer keep, and that
            one chunk of them may take.
        graph_bytes: Bytes that the captured layers of a batch may hold; 0 where nothing is to be captured.
        graph_batches: Batches whose captured layers have room beside all that is kept.
        pass_bytes: Bytes that one pass takes while it runs.
        needed: Bytes in all on the device, by what they are for.
        free: Bytes that were free on the device.
    """

    pass_rows: int
    batch_tokens: int
    storage: Storage
    on_host: bool
    bank_bytes: int
    weights_bytes: int
    graph_bytes: int
    graph_batches: int
    pass_bytes: int
    needed: tuple[tuple[str, int], ...]
    free: int


def plan_memory(loaded: LoadedModel, prompts: Sequence[CutPrompt], scheme: QuantScheme) -> MemoryPlan:
    """Decide what is kept where.

    Args:
        loaded: The model, already in memory.
        prompts: The prompts.
        scheme: Grouping and rounding.

    Raises:
        ComputeError: If the prompts cannot be scored in what is free, whatever is left out.
    """
    free = device_memory(loaded.device)[0] - captured_memory(loaded.device)
    sizes = _Sizes(loaded, prompts, scheme, free)
    taken = sizes.fixed + sizes.working + sizes.weights
    room = int(_USABLE * free) - taken
    if room < 0:
        raise _refused("Scoring these prompts", taken, free, loaded.device)
    share = int(_BANK_SHARE[loaded.device.type] * free)
    for storage, bank in ((Storage.VALUES, sizes.values), (Storage.CODES, sizes.codes)):
        if sizes.exact + bank <= room and bank <= share:
            batches = (room - sizes.exact - bank) // sizes.graphs if sizes.graphs else 0
            return sizes.plan(storage=storage, on_host=False, bank=bank, graph_batches=batches, free=free)
    if loaded.device.type == "cuda" and sizes.exact > room // 2:
        # The bus is slower than dequantising, so the codes are what stays.
        host = int(_USABLE * psutil.virtual_memory().available)
        if sizes.exact > host:
            raise _refused("The prompts' cache", sizes.exact, host, torch.device("cpu"))
        return sizes.plan(storage=Storage.CODES, on_host=True, bank=min(room, sizes.codes), free=free)
    if sizes.exact > room:
        raise _refused("Scoring these prompts", taken + sizes.exact, free, loaded.device)
    return sizes.plan(storage=Storage.CODES, on_host=False, bank=min(share, room - sizes.exact), free=free)


def chunk_tokens(device: torch.device, prefix: int) -> int:
    """Tokens of prompts with such a prefix that are read at once."""
    most = CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"])
    if device.type == "cpu" or prefix <= most:
        return most
    return max(_SMALLEST_CHUNK, min(most // 4, _MASK_BYTES // (3 * prefix)))


class _Sizes:
    """Bytes by purpose; `plan_memory` adds them up."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[CutPrompt], scheme: QuantScheme, free: int) -> None:
        info, item = loaded.info, loaded.dtype.itemsize
        per_layer = [layer.kv_heads * (layer.key_dim + layer.value_dim) * item for layer in info.layers]
        tokens = sum(len(prompt.prefix) + 2 * len(prompt.suffix) for prompt in prompts)
        suffix = sum(len(prompt.suffix) for prompt in prompts)
        longest = max(len(prompt.prefix) + 2 * len(prompt.suffix) for prompt in prompts)
        self.batch_tokens = max(longest, int(_BATCH_SHARE * free) // sum(per_layer))
        self.exact = sum(per_layer) * sum(len(prompt.prefix) for prompt in prompts)
        self.values = sum(per_layer) * tokens * (len(_WIDTHS) + 1)
        widths = (KVPolicy.uniform(f"KV{bits}", layers=len(info.layers), scheme=scheme) for bits in _WIDTHS)
        shares = sum(effective_bits(policy, info.layers) for policy in widths) / (8 * item)
        self.codes = int(sum(per_layer) * tokens * shares)
        self.pass_rows = _pass_rows(loaded.device, info.parameters, info.vocabulary)
        least = PROFILED_TOKENS if loaded.device.type == "cpu" else self.pass_rows
        rows = max(least, *(len(prompt.suffix) for prompt in prompts))
        attended = info.query_heads * info.layers[0].key_dim * item + max(per_layer)
        # On a CPU each layer's output is held twice: in full precision, and under the policy that was run last.
        outputs = (2 if loaded.device.type == "cpu" else 1) * info.hidden_size * item
        self.fixed = suffix * (4 * info.vocabulary + len(info.layers) * (attended + outputs))
        batch = min(self.batch_tokens, sum(len(prompt.prefix) + 2 * len(prompt.suffix) for prompt in prompts))
        chunk = min(chunk_tokens(loaded.device, longest), longest)
        scores = sum(len(prompt.suffix) * (len(prompt.prefix) + 2 * len(prompt.suffix)) for prompt in prompts)
        self.weights = min(int(_WEIGHTS_SHARE * free), 4 * _WEIGHTS_KEPT * info.query_heads * scores)
        # What one layer takes, held for as long as it is captured.
        layer = rows * info.hidden_size * item * _LAYER_COPIES + 4 * GATHERED_BYTES[loaded.device.type]
        self.graphs = layer if loaded.device.type == "cuda" else 0
        self.working = max(
            # Laid-out keys and values, and what dequantising them takes on the way.
            batch * max(per_layer) * 6 + rows * info.vocabulary * 6 + (4 * GATHERED_BYTES[loaded.device.type]),
            # Reading a prompt: activations of a chunk, and one layer's cache copied as it grows.
            chunk * (info.hidden_size * 24 * item + (0 if chunk == longest else 3 * longest))
            + 2 * batch * max(per_layer),
        )

    def plan(self, *, storage: Storage, on_host: bool, bank: int, free: int, graph_batches: int = 0) -> MemoryPlan:
        graphs = self.graphs if graph_batches else 0
        needed = (
            ("predictions and activations", self.fixed),
            ("one pass", self.working),
            ("attention weights of one layer", self.weights),
            ("exact prefixes", 0 if on_host else self.exact),
            ("quantised prefixes", bank),
            ("captured layers of one batch", graphs),
        )
        return MemoryPlan(
            pass_rows=self.pass_rows,
            batch_tokens=self.batch_tokens,
            storage=storage,
            on_host=on_host,
            bank_bytes=bank,
            weights_bytes=self.weights,
            graph_bytes=graphs,
            graph_batches=graph_batches,
            pass_bytes=self.working,
            needed=needed,
            free=free,
        )


def _pass_rows(device: torch.device, parameters: int, vocabulary: int) -> int:
    """Rows that keep a GPU at work for some milliseconds: fewer leave it waiting for launches."""
    if device.type == "cpu":
        return 1
    low, high = _PASS_ROWS
    return min(high, max(low, int(_PASS_OPERATIONS / (2 * parameters))), _LOGITS_BYTES // (4 * vocabulary))


def _refused(what: str, needed: int, free: int, device: torch.device) -> ComputeError:
    return ComputeError(
        f"{what} needs {needed / _GIB:.1f} GiB; {free / _GIB:.1f} GiB are free on {device.type}. "
        "Use fewer prompts or a lower prefix_tokens."
    )
