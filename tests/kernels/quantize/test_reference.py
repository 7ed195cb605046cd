"""The packed bytes are the ones drawn in the reference's docstring."""

import pytest
import torch

from kernels.quantize import reference

SIZES = (1, 2, 7, 8, 9, 16, 63, 64, 80, 128)


def _drawn(codes: list[int], bits: int) -> list[int]:
    """One row's bytes, spelt out code by code."""
    if bits == 8:
        return codes
    if bits == 3:
        row = -(-len(codes) // 8)
        padded = codes + [0] * (8 * row - len(codes))
        low = [sum((padded[plane * 2 * row + i] & 3) << (2 * plane) for plane in range(4)) for i in range(2 * row)]
        high = [sum((padded[plane * row + i] >> 2) << plane for plane in range(8)) for i in range(row)]
        return low + high
    planes = 8 // bits
    row = -(-len(codes) // planes)
    padded = codes + [0] * (planes * row - len(codes))
    return [sum(padded[plane * row + i] << (bits * plane) for plane in range(planes)) for i in range(row)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_bytes_are_as_drawn(bits, size):
    codes = torch.randint(0, 2**bits, (2, 3, 5, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    rows = reference.pack(codes, bits)
    for row, values in zip(rows.flatten(0, 2).tolist(), codes.flatten(0, 2).tolist(), strict=True):
        assert row == _drawn(values, bits)
    assert torch.equal(reference.unpack(rows, bits, size), codes)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_every_code_survives(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(8).view(1, 1, 8, -1)
    rows = reference.pack(codes, bits)
    assert torch.equal(reference.unpack(rows, bits, codes.shape[-1]), codes)
    assert rows.untyped_storage().nbytes() == rows.numel() == codes.numel() * bits // 8


def test_padding_is_zero():
    rows = reference.pack(torch.full((1, 1, 1, 9), 7, dtype=torch.uint8), 3)
    assert rows.shape[-1] == 6
    assert sum(int(byte).bit_count() for byte in rows.flatten()) == 27
