import pytest
import torch

from kernels.decode_attention import reference


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_packing_is_lossless_and_takes_plain_packing_s_bytes(bits: int, head_dim: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, 128, head_dim), dtype=torch.uint8)
    for pack, unpack in (
        (reference.pack_keys, reference.unpack_keys),
        (reference.pack_values, reference.unpack_values),
    ):
        words = pack(codes, bits)
        assert words.shape == (2, 3, 2, 2 * head_dim * bits)
        assert words.numel() * 4 == codes.numel() * bits // 8
        assert torch.equal(unpack(words, bits, head_dim), codes)


def test_head_dim_96_packs_without_padding() -> None:
    codes = torch.randint(0, 4, (1, 1, 64, 96), dtype=torch.uint8)
    assert torch.equal(reference.unpack_values(reference.pack_values(codes, 2), 2, 96), codes)


def test_key_bytes_lie_as_drawn() -> None:
    codes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    # token 8 * (2 * 1 + 1) + 5, channel 16 * 2 + 4 * 3 + 1: lane (5, 3), byte 1, code 1 of a byte
    codes[0, 0, 29, 45] = 9
    i = 1 * 4 + 2
    word = (i // 4) * 128 + (4 * 5 + 3) * 4 + i % 4
    expected = torch.zeros(512, dtype=torch.int32)
    expected[word] = 9 << (8 * 1 + 4 * 1)
    assert torch.equal(reference.pack_keys(codes, 4)[0, 0, 0], expected)


def test_value_bytes_lie_as_drawn() -> None:
    codes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    # channel 8 * (4 * 1 + 2) + 7, token 16 * 3 + 2 * 1 + 1 + 8: lane (7, 1), byte 3, code 2 of a byte
    codes[0, 0, 59, 55] = 3
    i = 4 * 1 + 3
    word = (i // 4) * 128 + (4 * 7 + 1) * 4 + i % 4
    expected = torch.zeros(256, dtype=torch.int32)
    expected[word] = 3 << (8 * 3 + 2 * 2)
    assert torch.equal(reference.pack_values(codes, 2)[0, 0, 0], expected)


def test_scales_come_back() -> None:
    scale, offset = torch.rand(2, 3, 128, 4).half(), torch.rand(2, 3, 128, 4).half()
    packed = reference.pack_token_scales(scale, offset)
    # token 8 * 2 + 5 of the second block, group 3: place 8 * 5 + 2
    assert packed[1, 2, 1, 3 * 128 + 2 * 42] == scale[1, 2, 64 + 21, 3]
    back = reference.unpack_token_scales(packed)
    assert torch.equal(back[0], scale)
    assert torch.equal(back[1], offset)


@pytest.mark.parametrize("head_dim", [80, 96, 128])
def test_channel_scales_come_back(head_dim: int) -> None:
    scale, offset = torch.rand(2, 3, 4, head_dim).half(), torch.rand(2, 3, 4, head_dim).half()
    back = reference.unpack_channel_scales(reference.pack_channel_scales(scale, offset), head_dim)
    assert torch.equal(back[0], scale)
    assert torch.equal(back[1], offset)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    query, keys = torch.randn(1, 2, 1, 8), torch.randn(1, 1, 4, 8)
    out = reference.attend(query, keys, keys, torch.zeros(1, 1, 4, dtype=torch.bool), 1.0)
    assert torch.equal(out, torch.zeros_like(out))
