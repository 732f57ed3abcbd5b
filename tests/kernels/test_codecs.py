"""Both low-bit codecs for all their values, compared with plain Python, torch's dtypes and torchao."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from seektune.kernels import (
    dequantize,
    dequantize_fp4,
    dequantize_fp8,
    quantize_fp4,
    quantize_fp4_closely,
    quantize_fp8,
)

from .test_quantize import FP8_GRID, e8m0, nearest, scales

FP4_GRID = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
DTYPES = [torch.bfloat16, torch.float32]


def assert_identical(found: Tensor, expected: Tensor) -> None:
    """Assert equal values, including signs of zero and NaN."""
    assert found.dtype == expected.dtype
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), ~numbers)
    assert torch.equal(found[numbers], expected[numbers])
    assert torch.equal(found.signbit()[numbers], expected.signbit()[numbers])


def every_fp4_byte() -> tuple[Tensor, Tensor]:
    """Each of 256 bytes with each of 256 scales."""
    packed = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(256, 1)
    return packed.view(torch.int8), scales(range(256), 256, 1).repeat_interleave(16, 0)


def every_fp8_byte() -> Tensor:
    """All bytes that are not NaN; the rest of the block is zeros."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127]
    return torch.cat([codes, codes.new_zeros(128 * 128 - 254)]).view(torch.float8_e4m3fn).view(128, 128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_equals_reference_for_every_fp4_byte_and_scale(dtype):
    packed, scale = every_fp4_byte()
    assert_identical(dequantize(packed, scale, dtype), dequantize_fp4(packed, scale).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_equals_reference_for_every_fp8_byte_and_scale(dtype):
    block = every_fp8_byte()
    for byte in range(256):
        scale = scales([byte], 1, 1)
        assert_identical(dequantize(block, scale, dtype), dequantize_fp8(block, scale).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.3, -1.7, 3e-38, 1e-42, 127.9, 3e38, 0.0, math.inf])
def test_dequantize_equals_reference_for_f32_scales(dtype, scale):
    block, factor = every_fp8_byte(), torch.tensor([[scale]])
    assert_identical(dequantize(block, factor, dtype), dequantize_fp8(block, factor).to(dtype))


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
@pytest.mark.parametrize("columns", [32, 416, 4128])
def test_dequantize_equals_reference_for_any_shape(rows, columns):
    weight = torch.randn(rows, columns) * torch.logspace(-4, 0, rows)[:, None]
    fp8 = quantize_fp8(weight)
    wide = weight[:, : columns // 32 * 32]
    for dtype in DTYPES:
        assert_identical(dequantize(*fp8, dtype), dequantize_fp8(*fp8).to(dtype))
        assert_identical(dequantize(*quantize_fp4(wide), dtype), dequantize_fp4(*quantize_fp4(wide)).to(dtype))


def test_dequantize_equals_reference_for_other_dtypes():
    weight = torch.randn(130, 64)
    for dtype in (torch.float64, torch.float16):
        assert_identical(dequantize(*quantize_fp4(weight), dtype), dequantize_fp4(*quantize_fp4(weight)).to(dtype))
        assert_identical(dequantize(*quantize_fp8(weight), dtype), dequantize_fp8(*quantize_fp8(weight)).to(dtype))


def test_fp8_bytes_match_torch():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = torch.zeros(2, 128, dtype=torch.float8_e4m3fn)
    weight.view(torch.uint8).copy_(codes.view(torch.uint8).view(2, 128))
    assert_identical(dequantize_fp8(weight, scales([127], 1, 1)).flatten(), codes.float())


@pytest.mark.parametrize("byte", [1, 2, 64, 126, 127, 128, 190, 240, 252])
def test_fp4_round_trip_is_exact(byte):
    """For any scale of its group; -0 stays -0."""
    packed = torch.arange(256, dtype=torch.uint8).view(16, 16).view(torch.int8)
    scale = scales([byte] * 16, 16, 1)
    values = dequantize_fp4(packed, scale)
    assert_identical(dequantize_fp4(*quantize_fp4(values)), values)


@pytest.mark.parametrize("byte", [12, 64, 120, 127, 140, 240, 246])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_fp8_round_trip_is_exact(byte, power_of_two):
    values = dequantize_fp8(every_fp8_byte(), scales([byte], 1, 1))
    assert_identical(dequantize_fp8(*quantize_fp8(values, power_of_two)), values)


def test_fp4_rounds_to_nearest_even():
    """All midpoints and their neighbors of both signs, with scales of any size; the 6 fixes the scale."""
    ties = [(low + high) / 2 for low, high in itertools.pairwise(FP4_GRID)]
    points = [tie * factor for tie in ties for factor in (1 - 2**-20, 1, 1 + 2**-20)]
    row = [6.0, *points, -0.0, 0.0, 2.0**-30, *([0.0] * 7)]
    weight = torch.tensor([row, [-x for x in row]])
    expected = torch.tensor([[nearest(x, FP4_GRID) for x in line] for line in weight.tolist()])
    for exponent in (-120, -40, 0, 40, 120):
        found = dequantize_fp4(*quantize_fp4(weight * 2.0**exponent))
        assert_identical(found, expected * 2.0**exponent)


def test_closely_quantized_fp4_stays_on_its_grid_after_small_changes():
    """And its squared error is never larger than that of `quantize_fp4`."""
    on_grid = dequantize_fp4(*quantize_fp4(torch.randn(64, 256)))
    for size in (0.0, 1e-3, 1e-2, 0.1, 1.0):
        values = on_grid + size * torch.randn(64, 256)
        plain, close = dequantize_fp4(*quantize_fp4(values)), dequantize_fp4(*quantize_fp4_closely(values))
        groups = [(each - values).unflatten(1, (-1, 32)).square().sum(-1) for each in (close, plain)]
        assert (groups[0] <= groups[1] * (1 + 1e-6)).all()
        if size <= 1e-3:
            assert torch.equal(close, on_grid)
    assert torch.equal(quantize_fp4_closely(torch.zeros(2, 32))[0], torch.zeros(2, 16, dtype=torch.int8))


def test_fp8_rounds_to_nearest_even():
    ties = [(low + high) / 2 for low, high in itertools.pairwise(FP8_GRID)]
    points = [tie * factor for tie in ties for factor in (1 - 2**-20, 1, 1 + 2**-20)]
    row = torch.tensor([448.0, *points, 0.0, -0.0, 2.0**-30])
    for sign in (1, -1):
        weight = torch.zeros(4, 128)
        weight.view(-1)[: len(row)] = row * sign
        expected = torch.tensor([nearest(x, FP8_GRID) for x in weight.flatten().tolist()]).view_as(weight)
        for exponent in (-100, 0, 100):
            assert_identical(dequantize_fp8(*quantize_fp8(weight * 2.0**exponent)), expected * 2.0**exponent)


@pytest.mark.parametrize("peak", [6.0, 6.0 * (1 + 2**-23), 3.0, 2.0**-126, 2.0**-140, 0.0, 3e38])
def test_fp4_scale_is_smallest_power_of_two_that_holds_the_peak(peak):
    weight = torch.zeros(1, 32)
    weight[0, 5] = -peak
    _, scale = quantize_fp4(weight)
    least = 2.0 ** math.ceil(math.log2(peak / 6) - (1e-9 if peak == 6.0 else 0)) if peak else 0.0
    assert scale.float().item() == max(least, 2.0**-126)


@pytest.mark.parametrize("peak", [448.0, 448.0 * (1 + 2**-23), 224.0, 2.0**-120, 2.0**-140, 0.0, 3e38])
def test_fp8_scale_is_smallest_power_of_two_that_holds_the_peak(peak):
    weight = torch.zeros(128, 128)
    weight[99, 5] = -peak
    _, scale = quantize_fp8(weight)
    least = 2.0 ** math.ceil(math.log2(peak / 448)) if peak else 0.0
    assert scale.float().item() == max(least, 2.0**-126)


def test_zeros_and_subnormals_stay_finite():
    weight = torch.tensor([[0.0, -0.0] * 16, [2.0**-149, -(2.0**-149)] * 16, [2.0**-127] * 32])
    for quantize, decode in ((quantize_fp4, dequantize_fp4), (quantize_fp8, dequantize_fp8)):
        found = decode(*quantize(weight))
        assert found.isfinite().all()
        assert torch.equal(found[0].signbit(), weight[0].signbit())
        assert (found[2] - weight[2]).abs().max() <= 2.0**-128


def test_scale_byte_255_gives_nan_in_its_group():
    packed = torch.zeros(1, 32, dtype=torch.int8)
    found = dequantize(packed, scales([255, 127], 1, 2), torch.bfloat16)
    assert found[:, :32].isnan().all()
    assert (found[:, 32:] == 0).all()
    assert math.isnan(e8m0(255))


@pytest.fixture(scope="module")
def mx():
    """torchao's MX format: packed e2m1 in groups of 32 with E8M0 scales by the same rule."""
    return pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")


def test_fp4_bytes_and_scales_match_torchao(mx):
    weight = torch.randn(64, 256) * torch.logspace(-6, 6, 64)[:, None]
    scale, packed = mx.to_mx(weight, torch.float4_e2m1fn_x2, 32, mx.ScaleCalculationMode.RCEIL)
    ours, our_scale = quantize_fp4(weight)
    assert torch.equal(our_scale.view(torch.uint8), scale.view(torch.uint8))
    assert torch.equal(ours.view(torch.uint8), packed.view(torch.uint8))


def test_fp4_decoding_matches_torchao(mx):
    packed, scale = every_fp4_byte()
    packed, scale = packed[: 255 * 16], scale[: 255 * 16]
    theirs = mx.to_dtype(packed.view(torch.uint8), scale, torch.float4_e2m1fn_x2, 32, torch.float32)
    assert_identical(dequantize_fp4(packed, scale), theirs)
