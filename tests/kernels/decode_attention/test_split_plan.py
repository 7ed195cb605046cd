import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.decode_attention import triton_impl
from kernels.decode_attention.triton_impl import split_plan
from tests.kernels.decode_attention.cases import TOLERANCE, Shape, error, make
from tests.kernels.decode_attention.test_triton_impl import gpu, run


@given(
    heads=st.integers(1, 20000),
    blocks=st.integers(1, 5000),
    programs=st.sampled_from([264, 396, 1056, 1584]),
    more=st.integers(0, 6),
    saturates=st.booleans(),
)
def test_every_split_has_blocks_and_few_programs_wait(
    heads: int, blocks: int, programs: int, more: int, saturates: bool
) -> None:
    splits = split_plan(heads, blocks, programs, None, more=more, saturates=saturates)
    per_split = -(-(blocks + more) // splits)
    assert (splits - 1) * per_split < blocks + more <= splits * per_split
    assert splits == 1 or per_split >= 2
    assert heads * splits <= max(heads, 16 * programs)


@pytest.mark.parametrize(("heads", "blocks"), [(8, 2049), (64, 65), (64, 513), (256, 129), (512, 65), (512, 257)])
@pytest.mark.parametrize("programs", [1056, 1584])
def test_one_wave_where_it_fills_the_places(heads: int, blocks: int, programs: int) -> None:
    for saturates in (False, True):
        splits = split_plan(heads, blocks, programs, None, saturates=saturates)
        assert heads * splits <= programs
        assert heads * splits > 0.9 * programs or blocks // splits <= 5


@pytest.mark.parametrize("saturates", [False, True])
def test_a_few_programs_too_many_do_not_take_a_wave_of_their_own(saturates: bool) -> None:
    whole = split_plan(1056, 512, 1056, None, saturates=saturates)
    over = split_plan(1064, 512, 1056, None, saturates=saturates)
    assert whole == 1
    assert over >= 4


def test_empty_places_count_where_programs_wait_for_themselves() -> None:
    assert split_plan(584, 512, 1056, None, saturates=True) == 1
    assert 584 * split_plan(584, 512, 1056, None) > 4 * 1056


def test_what_is_seen_counts_not_what_is_held() -> None:
    assert split_plan(1064, 4096, 1056, 640) == split_plan(1064, 11, 1056, None)


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("bits", "channel", "heads", "places"), [(2, False, 7, 12), (2, True, 7, 12), (8, True, 5, 8)])
def test_several_waves_agree_with_float64(
    monkeypatch: pytest.MonkeyPatch, bits: int, channel: bool, heads: int, places: int
) -> None:
    monkeypatch.setattr(triton_impl, "processors", lambda _: 1)
    shape = Shape(
        k_bits=bits, v_bits=bits, channel=channel, kv_heads=heads, tokens=2100, recent=40, dtype=torch.bfloat16
    )
    assert split_plan(2 * heads, 33, places, None, more=2) > 1
    case = make(shape)
    assert error(run(case), case.expected) < TOLERANCE[shape.dtype]
