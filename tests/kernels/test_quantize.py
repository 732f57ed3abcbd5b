"""Low-bit formats compared with their definition in plain Python."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from seektune.kernels import dequantize_fp4, dequantize_fp8, encode_rows, fake_quantize_fp4, fake_quantize_fp8, hadamard

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3(byte: int) -> float:
    """Sign, four bits of exponent (bias 7), three of mantissa; no infinity, NaN if all seven bits are set."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def e8m0(byte: int) -> float:
    return math.nan if byte == 255 else 2.0 ** (byte - 127)


def e2m1(nibble: int) -> float:
    return (-1.0 if nibble & 8 else 1.0) * FP4[nibble & 7]


def scales(bytes_: list[int] | range, *shape: int) -> Tensor:
    return torch.tensor(list(bytes_), dtype=torch.uint8).view(torch.float8_e8m0fnu).reshape(shape)


def assert_same(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


def test_dequantize_every_fp8_byte():
    weight = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(2, 128)
    assert_same(dequantize_fp8(weight, scales([124], 1, 1)), [e4m3(byte) / 8 for byte in range(256)])


def test_dequantize_every_fp4_byte_low_nibble_first():
    packed = torch.arange(256, dtype=torch.uint8).view(torch.int8).reshape(16, 16)
    expected = [e2m1(nibble) * 4 for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert_same(dequantize_fp4(packed, scales([129] * 16, 16, 1)), expected)


def test_fp4_bytes_are_not_fp8_bytes():
    """Byte 0x72 is 1.0 and 6.0 in FP4, and 160 in FP8."""
    packed = torch.full((1, 16), 0x72, dtype=torch.int8)
    assert_same(dequantize_fp4(packed, scales([127], 1, 1)), [1.0, 6.0] * 16)
    assert e4m3(0x72) == 160.0


def test_fp8_scale_bytes_0_to_255():
    """The bytes are exponents: converted by value instead of viewed they would be wrong. 255 is NaN."""
    ones = torch.ones(1, 256 * 128).to(torch.float8_e4m3fn)
    found = dequantize_fp8(ones, scales(range(256), 1, 256)).reshape(256, 128)
    for column in (0, 127):
        assert_same(found[:, column], [e8m0(byte) for byte in range(256)])
    assert found[0, 0] == 2.0**-127 > 0


def test_fp4_scale_bytes_0_to_255():
    ones = torch.full((1, 256 * 16), 0x22, dtype=torch.int8)
    found = dequantize_fp4(ones, scales(range(256), 1, 256)).reshape(256, 32)
    for column in (0, 31):
        assert_same(found[:, column], [e8m0(byte) for byte in range(256)])


def test_fp8_blocks_are_128_by_128_and_may_be_partial():
    weight = torch.randn(130, 260).to(torch.float8_e4m3fn)
    scale = scales([120, 127, 130, 119, 131, 126], 2, 3)
    found = dequantize_fp8(weight, scale)
    for row in (0, 127, 128, 129):
        for column in (0, 127, 128, 255, 256, 259):
            assert found[row, column] == weight[row, column].item() * scale[row // 128, column // 128].item()


def test_fp8_with_f32_scales():
    weight = torch.randn(128, 256).to(torch.float8_e4m3fn)
    found = dequantize_fp8(weight, torch.tensor([[0.3, -1.7]]))
    expected = weight.float()
    expected[:, :128] *= 0.3
    expected[:, 128:] *= -1.7
    assert torch.equal(found, expected)


def test_fp4_groups_are_32_columns_of_a_row():
    packed = torch.full((2, 32), 0x22, dtype=torch.int8)
    found = dequantize_fp4(packed, scales([127, 128, 129, 130], 2, 2))
    assert_same(found, [1.0] * 32 + [2.0] * 32 + [4.0] * 32 + [8.0] * 32)


def nearest(value: float, grid: list[float]) -> float:
    """The nearest magnitude in an ascending grid whose even indices are the even codes; ties go to the even code."""
    best = min(range(len(grid)), key=lambda code: (abs(grid[code] - abs(value)), code % 2))
    return math.copysign(grid[best], value)


def in_plain_python(x: Tensor, group: int, grid: list[float], least: float) -> Tensor:
    """For each `group` of columns: scale 2^ceil(log2(amax / top)), divide, round, multiply."""
    rows = []
    for row in x.flatten(0, -2).tolist():
        out = []
        for start in range(0, len(row), group):
            part = row[start : start + group]
            ratio = max(*map(abs, part), least) / grid[-1]
            scale = 2.0 ** math.ceil(math.log2(ratio))
            out += [nearest(max(-grid[-1], min(grid[-1], value / scale)), grid) * scale for value in part]
        rows.append(out)
    return torch.tensor(rows).view_as(x)


FP8_GRID = [e4m3(byte) for byte in range(127)]


@pytest.mark.parametrize("size", [1e-7, 1e-2, 1.0, 3e4])
@pytest.mark.parametrize("width", [64, 192, 40, 100])
def test_fake_fp8_rounds_groups_of_64_to_e4m3(size, width):
    x = torch.randn(3, 2, width) * size * torch.logspace(-3, 0, width)
    found = fake_quantize_fp8(x)
    assert torch.equal(found, in_plain_python(x, 64, FP8_GRID, least=1e-4))
    assert (found != x).any()


@pytest.mark.parametrize("size", [1e-7, 1e-2, 1.0, 3e4])
@pytest.mark.parametrize("width", [32, 128, 16, 80])
def test_fake_fp4_rounds_groups_of_32_to_e2m1(size, width):
    x = torch.randn(3, 2, width) * size
    found = fake_quantize_fp4(x)
    assert torch.equal(found, in_plain_python(x, 32, list(FP4), least=6 * 2.0**-126))
    assert (found != x).any()


def test_fake_fp4_ties_go_to_the_even_code():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    x = torch.tensor([[6.0, *ties, *(-tie for tie in ties)] + [0.0] * 17])
    assert_same(fake_quantize_fp4(x), [6.0, *even, *(-value for value in even)] + [0.0] * 17)
    above = torch.tensor([tie * (1 + 2**-20) for tie in ties])
    below = torch.tensor([tie * (1 - 2**-20) for tie in ties])
    x = torch.cat([torch.tensor([6.0]), above, below, torch.zeros(17)])[None]
    assert_same(
        fake_quantize_fp4(x), [6.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0] + [0.0] * 17
    )


def test_fake_fp8_ties_go_to_the_even_code():
    """Midpoints of the grid, for normal and subnormal numbers; the 448 fixes the scale at 1."""
    ties = [(low + high) / 2 for low, high in itertools.pairwise(FP8_GRID)]
    even = [FP8_GRID[code + code % 2] for code in range(126)]
    for start in range(0, 126, 63):
        x = torch.tensor([[448.0, *ties[start : start + 63]]])
        assert fake_quantize_fp8(x)[0, 1:].tolist() == even[start : start + 63]


@pytest.mark.parametrize("peak", [448.0, 448.0 * 2**-9, 448.0 * 2**7])
def test_fp8_peak_at_a_power_of_two_times_448_keeps_its_scale(peak):
    """2^ceil(log2(peak / 448)) is exact there: a logarithm that rounds up would double the scale and lose a bit."""
    odd = peak * 15 / 16 / 256  # exact at this scale, a tie at twice the scale only far below
    x = torch.tensor([[peak, peak * 13 / 14, odd] + [0.0] * 61])
    assert fake_quantize_fp8(x)[0, 0] == peak
    assert fake_quantize_fp8(x)[0, 1] == peak * 13 / 14
    barely = torch.tensor([[peak * (1 + 2**-20), peak * 2**-17] + [0.0] * 62])
    assert fake_quantize_fp8(barely)[0, 0] == peak
    assert torch.equal(fake_quantize_fp8(barely), in_plain_python(barely, 64, FP8_GRID, least=1e-4))


@pytest.mark.parametrize("rounding", [fake_quantize_fp8, fake_quantize_fp4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_fake_quantization_keeps_dtype_and_has_straight_through_gradient(rounding, dtype):
    x = (torch.randn(2, 5, 96) * 3).to(dtype).requires_grad_()
    y = rounding(x)
    assert y.dtype == dtype
    assert not torch.equal(y, x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("rounding", [fake_quantize_fp8, fake_quantize_fp4])
def test_fake_quantization_is_idempotent_and_keeps_zeros(rounding):
    assert torch.equal(rounding(torch.zeros(2, 64)), torch.zeros(2, 64))
    once = rounding(torch.randn(16, 64))
    assert torch.equal(rounding(once), once)


@pytest.mark.parametrize("size", [1, 2, 16, 128])
def test_hadamard_equals_the_orthonormal_sylvester_matrix(size):
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x = torch.randn(3, 4, size, dtype=torch.float64)
    torch.testing.assert_close(hadamard(x), x @ matrix / size**0.5)
    torch.testing.assert_close(hadamard(hadamard(x)), x)


def test_hadamard_preserves_products_and_has_a_gradient():
    q, k = torch.randn(2, 8, 32, dtype=torch.float64)
    torch.testing.assert_close(hadamard(q) @ hadamard(k).T, q @ k.T)
    assert hadamard(q.bfloat16()).dtype == torch.bfloat16
    assert torch.autograd.gradcheck(hadamard, q[:2].requires_grad_())


@pytest.mark.parametrize("width", [128, 200, 7])
def test_encoded_rows_are_the_rounded_ones(width: int):
    x = torch.randn(5, width) * torch.tensor([1e-6, 1.0, 0.0, -300.0, 1e20])[:, None]
    codes, scales = encode_rows(x)
    assert codes.dtype == torch.float8_e4m3fn
    assert scales.shape == (5, -(-width // 128))
    values = codes.float() * scales.repeat_interleave(128, dim=1)[:, :width]
    assert torch.equal(values, fake_quantize_fp8(x, 128))
