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


def _hadamard(size):
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    half = _hadamard(size // 2)
    return torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)], 0) / 2**0.5


@pytest.mark.parametrize("size", SIZES)
def test_rotating_is_the_drawn_matrix_and_its_own_inverse(size):
    x = torch.randn((2, 3, 5, size), generator=torch.Generator().manual_seed(size))
    block = next(n for n in (128, 64, 32, 16, 8, 4, 2, 1) if size % n == 0)
    matrix = torch.block_diag(*[_hadamard(block)] * (size // block))
    turned = reference.rotate(x)
    torch.testing.assert_close(turned.double(), x.double() @ matrix.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference.rotate(turned), x, rtol=1e-5, atol=1e-5)
    assert reference.rotate(x.double(), dtype=torch.float16).dtype == torch.float16
