"""A capture that fails leaves nothing behind."""

import pytest
import torch

from kvtuner_core.runtime.capturing import undone_where_it_fails


@pytest.fixture
def left(monkeypatch):
    """What is current after a failed capture, and what the allocator is told; as torch has it on a GPU."""
    left = {"stream": "own", "ended": []}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: left["stream"])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: left.update(stream=stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *told: left["ended"].append(told), raising=False)
    return left


def _fail(left, error):
    with undone_where_it_fails((0, 7), torch.device("cuda", 1)):
        left["stream"] = "capturing"
        raise error


def test_a_failed_capture_is_over_for_the_allocator_and_its_stream_is_left(left):
    with pytest.raises(RuntimeError, match="invalidated"):
        _fail(left, RuntimeError("invalidated"))
    assert left == {"stream": "own", "ended": [(1, (0, 7))]}


def test_where_torch_has_ended_it_itself_its_own_error_is_what_comes(left, monkeypatch):
    def refused(_device, _pool):
        raise RuntimeError("not currently recording")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refused)
    with pytest.raises(RuntimeError, match="invalidated"):
        _fail(left, RuntimeError("invalidated"))
    assert left["stream"] == "own"


def test_of_a_capture_that_succeeds_nothing_is_undone(left):
    with undone_where_it_fails((0, 7), torch.device("cuda", 1)):
        left["stream"] = "capturing"
    assert left == {"stream": "capturing", "ended": []}


def _fail_twice():
    with undone_where_it_fails((0, 7), torch.device("cuda", 1)):
        try:
            raise RuntimeError("out of memory")
        finally:
            raise RuntimeError("invalidated")


def test_what_broke_a_capture_off_is_what_is_said(left):
    with pytest.raises(RuntimeError, match="out of memory"):
        _fail_twice()
    assert left["ended"] == [(1, (0, 7))]


def _fail_after_another(left):
    try:
        raise RuntimeError("of before")
    except RuntimeError:
        _fail(left, RuntimeError("invalidated"))


def test_an_error_that_is_being_handled_already_is_not_what_broke_it_off(left):
    with pytest.raises(RuntimeError, match="invalidated"):
        _fail_after_another(left)
