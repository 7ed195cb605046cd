import pytest
import torch

from kernels.step_numbers.op import Places, step_numbers
from tests.kernels.interpreter import needs_interpreter, run_interpreted
from tests.kernels.step_numbers.cases import PLACES, differing, numbers, stands


@pytest.mark.parametrize("places", PLACES, ids=str)
def test_every_token_is_seen_once_packed_or_recent(places: Places) -> None:
    for tokens, packed, count in stands(places):
        found = numbers(places, (tokens, packed, count), device="cpu", implementation="reference")
        for row, padding in enumerate((0, 4, tokens // 2)):
            for i in range(count):
                query = tokens + i
                lowest = max(padding, 0 if places.sliding is None else query - places.sliding + 1)
                expected = set(range(lowest, query + 1))
                recent = [
                    _token(slot, tokens + count, places) for slot in found.recent[row, i].nonzero()[:, 0].tolist()
                ]
                read = set(range(int(found.first[row, i]), int(found.last[row])))
                assert sorted(recent + [token + places.sinks for token in read]) == sorted(expected)
                assert (int(found.exact_first[row, i]), int(found.exact_last[row, i])) == (lowest, query + 1)


def _token(slot: int, after: int, places: Places) -> int:
    """The newest position that lies in a slot of sinks and ring after ``after`` tokens."""
    if slot < places.sinks:
        return slot
    return max(p for p in range(after) if p >= places.sinks and (p - places.sinks) % places.ring == slot - places.sinks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_the_kernel_gives_the_references_numbers(places: Places) -> None:
    for stand in stands(places):
        found = numbers(places, stand, device="cuda", implementation="auto")
        assert differing(found, numbers(places, stand, device="cpu", implementation="reference")) == []


def test_wrong_counters_are_refused() -> None:
    with pytest.raises(ValueError, match="must be int32"):
        step_numbers(torch.zeros(3), torch.zeros(2), count=1, places=PLACES[0])


@needs_interpreter
def test_the_kernel_gives_them_in_the_interpreter() -> None:
    run_interpreted("tests.kernels.step_numbers.interpreted")
