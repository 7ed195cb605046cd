"""Decoder layers of a suffix pass as CUDA graphs.

A small model's pass is bound by the host, which launches some two hundred kernels a layer. So a layer
that was called some times is captured: its hidden states, and which width each policy reads, lie in
tensors that stay where they are, and the one graph is right for every pass of the batch. What else
the model hands to its layers (positions, the rotary embedding) depends on the batch alone, which is
checked. A captured layer must give the very bits that it gave when it was called; where it does not,
where it waits for the GPU or cannot be captured, where the model keeps what earlier layers gave, or
where there is no memory for it, layers go on being called.
"""

import contextlib
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from kvtuner_core.runtime.capturing import undone_where_it_fails
from kvtuner_core.runtime.chosen import Choices
from kvtuner_core.runtime.provenance import captured_memory, device_memory

_CALLS = 2
"""Calls of a layer before it is captured: a batch of few passes is done sooner without."""

_Key = tuple[int, bool]
"""Layer, and whether some policy quantises it."""


@dataclass(slots=True, eq=False)
class LayerGraphs:
    """The captured layers of one batch's passes.

    Attributes:
        room: Bytes that must be free for capturing to begin.
        why_eager: Why layers are not captured; ``None`` as long as nothing speaks against it.
    """

    room: int
    why_eager: str | None = None
    _choices: Choices | None = None
    _widths: frozenset[int] = frozenset()
    _quantised: tuple[bool, ...] = ()
    _hidden: Tensor | None = None
    _calls: Counter[_Key] = field(default_factory=Counter)
    _given: dict[int, tuple[list[Any], Any]] = field(default_factory=dict)
    _outputs: dict[int, "weakref.ref[Any]"] = field(default_factory=dict)
    _graphs: dict[_Key, torch.cuda.CUDAGraph] = field(default_factory=dict)
    _pool: Any = None
    _stream: torch.cuda.Stream | None = None

    @property
    def captured(self) -> int:
        """How many layers are captured now, those that nobody quantises apart from those that somebody does."""
        return len(self._graphs)

    def begin(self, choices: Choices) -> Choices:
        """Take in the widths of the next pass; what its attention must read them from is returned."""
        if self.why_eager is not None:
            return choices
        found = frozenset(width for sides in choices.widths for widths in sides for width in widths)
        if not found <= self._widths:
            # A graph simulates the widths that it was captured with.
            self._widths |= found
            self._forget()
        if self._choices is None:
            self._choices = choices
        else:
            self._choices.places.copy_(choices.places)
            self._choices.bits.copy_(choices.bits)
        every = tuple(sorted(self._widths))
        self._quantised = tuple(any(sides) for sides in choices.widths)
        self._choices.widths = tuple((every, every) if quantised else ((), ()) for quantised in self._quantised)
        return self._choices

    @contextlib.contextmanager
    def instead_of(self, layers: nn.ModuleList, start: int) -> Iterator[None]:
        """Let the layers from ``start`` on be replayed where they are captured, during the block."""
        if self.why_eager is not None:
            yield
            return
        chosen = list(enumerate(layers))[start:]
        for index, layer in chosen:
            layer.forward = self._step(index, layer.forward)
        try:
            yield
        finally:
            for _, layer in chosen:
                del layer.forward

    def _step(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        key = (index, self._quantised[index])

        def step(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            graph = self._graphs.get(key)
            if graph is not None and self._hidden is not None:
                if hidden_states is not self._hidden:
                    self._hidden.copy_(hidden_states)
                graph.replay()
                return self._hidden
            self._look_for_kept(index, hidden_states)
            output = self._called(key, lambda: forward(hidden_states, *args, **kwargs), hidden_states.is_cuda)
            self._calls[key] += 1
            self._check(index, (args, kwargs))
            if isinstance(output, Tensor):
                self._outputs[index] = weakref.ref(output)
            if self._calls[key] > _CALLS and self.why_eager is None:
                # What a graph reads must stay: the tensors of the first pass are kept, those of this one are not.
                kept_args, kept_kwargs = tree_unflatten(*self._given[index])
                self._capture(key, lambda hidden: forward(hidden, *kept_args, **kept_kwargs), hidden_states, output)
            return output

        return step

    def _called(self, key: _Key, call: Callable[[], Any], on_gpu: bool) -> Any:
        """What a layer gives; before it is captured it shows that it does not wait for the GPU.

        A capture must not wait, and one that fails on the way leaves torch's allocator believing that it goes on.
        """
        if self._calls[key] != _CALLS or self.why_eager is not None or not on_gpu:
            return call()
        try:
            with _no_waiting():
                return call()
        except RuntimeError as error:
            self._give_up(_line(error))
        return call()

    def _look_for_kept(self, index: int, hidden: Tensor) -> None:
        """Outputs share one tensor once layers are captured, so a model must have let go of those before the last."""
        earlier = self._outputs.get(index - 2)
        kept = None if earlier is None else earlier()
        if self.why_eager is None and kept is not None and kept is not hidden:
            self._give_up("it keeps what earlier layers gave")

    def _check(self, index: int, given: Any) -> None:
        """Whatever a layer is given beside its hidden states is the same in every pass."""
        leaves, shape = tree_flatten(given)
        known = self._given.setdefault(index, (leaves, shape))
        if self.why_eager is None and not (known[1] == shape and all(map(_same, known[0], leaves))):
            self._give_up("its layers are given other things in other passes")

    def _capture(self, key: _Key, call: Callable[[Tensor], Any], hidden: Tensor, output: Any) -> None:
        try:
            if not isinstance(output, Tensor) or output.shape != hidden.shape:
                raise TypeError("its layers give more than hidden states")
            self._reserve(hidden)
            graph = self._graph(call, hidden)
            if not torch.equal(self._hidden, output):  # type: ignore[arg-type]
                raise RuntimeError("a captured layer gives other numbers")
            self._graphs[key] = graph
        # Whatever a model does that a graph cannot hold comes as another kind of RuntimeError.
        except (RuntimeError, TypeError) as error:
            self._give_up(_line(error))

    def _reserve(self, hidden: Tensor) -> None:
        if self._hidden is not None:
            return
        free = device_memory(hidden.device)[0] - captured_memory(hidden.device)
        if free < self.room:
            raise TypeError(f"capturing takes {self.room} bytes; {free} are free")
        self._hidden = torch.empty_like(hidden)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(hidden.device)  # type: ignore[no-untyped-call]

    def _graph(self, call: Callable[[Tensor], Any], hidden: Tensor) -> torch.cuda.CUDAGraph:
        """The captured call, replayed once."""
        static, stream = self._hidden, self._stream
        assert static is not None and stream is not None  # noqa: S101, PT018
        if hidden is not static:
            static.copy_(hidden)
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(hidden.device))
        with undone_where_it_fails(self._pool, hidden.device), torch.cuda.stream(stream):
            # Unlike torch's own context this neither collects garbage nor gives cached memory back, for each layer.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                static.copy_(call(static))
            finally:
                graph.capture_end()
        torch.cuda.current_stream(hidden.device).wait_stream(stream)
        graph.replay()
        return graph

    def _give_up(self, why: str) -> None:
        self.why_eager = why
        self._forget()
        self._hidden = None

    def _forget(self) -> None:
        self._graphs.clear()
        if self._pool is not None:
            self._pool = torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises a RuntimeError during the block."""
    before = torch.cuda.get_sync_debug_mode()
    _set_waiting("error")
    try:
        yield
    finally:
        _set_waiting(before)


def _set_waiting(mode: int | str) -> None:
    with warnings.catch_warnings():
        # torch warns that it does not notice everything that waits.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and bool(torch.equal(one, other)))
    return bool(one is other or one == other)
