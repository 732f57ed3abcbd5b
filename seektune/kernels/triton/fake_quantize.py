"""Rounding to the values of low-bit formats in one pass: of weights, and of activations by groups of columns.

The values are the reference's, to the last bit. Shapes: O outputs, I inputs, N groups, G columns of a group.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.eager.fake_weight import fake_quantize_weight as eager_weight
from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK
from seektune.kernels.reference.quantize import FP4_MAX, FP8_MAX, SMALLEST, SMALLEST_PEAK
from seektune.kernels.reference.quantize import fake_quantize_fp4 as plain_fp4
from seektune.kernels.reference.quantize import fake_quantize_fp8 as plain_fp8

VALUES = 2048
"""Values that a program rounds at a time."""
ROUNDED = torch.bfloat16, torch.float32


def fake_quantize_weight(weight: Tensor, kind: str) -> Tensor:
    """See `reference.fake_quantize_weight`; fp64 uses `eager`."""
    if weight.dtype not in ROUNDED:
        return eager_weight(weight, kind)
    rounding = {"fp4": _fp4_groups, "fp8": _fp8_blocks}[kind]
    rounded: Tensor = _StraightThrough.apply(weight, rounding, FP4_GROUP)
    return rounded


def fake_quantize_fp8(x: Tensor, group: int = 64) -> Tensor:
    """See `reference.fake_quantize_fp8`; a last group with fewer columns uses it."""
    if x.dtype not in ROUNDED or x.shape[-1] % group:
        return plain_fp8(x, group)
    rounded: Tensor = _StraightThrough.apply(x, _fp8_groups, group)
    return rounded


def fake_quantize_fp4(x: Tensor, group: int = FP4_GROUP) -> Tensor:
    """See `reference.fake_quantize_fp4`; a last group with fewer columns uses it."""
    if x.dtype not in ROUNDED or x.shape[-1] % group:
        return plain_fp4(x, group)
    rounded: Tensor = _StraightThrough.apply(x, _fp4_groups, group)
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounding, group):  # type: ignore[no-untyped-def]
        x = x.contiguous()
        out = torch.empty_like(x)
        if x.numel():
            rounding(x, out, group)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None, None


def _fp4_groups(x: Tensor, out: Tensor, group: int) -> None:
    _run_groups(x, out, group, FP4_MAX, 0.0, True)


def _fp8_groups(x: Tensor, out: Tensor, group: int) -> None:
    _run_groups(x, out, group, FP8_MAX, SMALLEST_PEAK, False)


def _run_groups(x: Tensor, out: Tensor, group: int, largest: float, peak: float, fp4: bool) -> None:
    groups = x.numel() // group
    rows = max(VALUES // group, 1)
    columns = triton.next_power_of_2(group)
    _groups[(triton.cdiv(groups, rows),)](x, out, groups, group, largest, peak, SMALLEST, fp4, rows, columns)


def _fp8_blocks(x: Tensor, out: Tensor, group: int) -> None:
    rows, columns = x.shape[-2:]
    grid = x.numel() // (rows * columns), triton.cdiv(rows, FP8_BLOCK), triton.cdiv(columns, FP8_BLOCK)
    _blocks[grid](x, out, rows, columns, FP8_MAX, SMALLEST, FP8_BLOCK, VALUES // FP8_BLOCK)


@triton.jit
def _scale(peak, largest, smallest):  # type: ignore[no-untyped-def]
    """The smallest power of two, at least `smallest`, that holds the peak, and its inverse."""
    bits = tl.maximum(tl.div_rn(peak, peak * 0.0 + largest), smallest).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + tl.where((bits & 0x7FFFFF) != 0, 1, 0)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(x):  # type: ignore[no-untyped-def]
    """The nearest whole number of magnitudes below 2^22, ties to even: fp32 of 1.5 * 2^23 and more has no fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _to_fp4(x):  # type: ignore[no-untyped-def]
    """The nearest e2m1 number without its sign; steps are 1/2 below 2, 1 below 4 and 2 from there."""
    size = tl.abs(x)
    step = tl.where(size < 2.0, 0.5, tl.where(size < 4.0, 1.0, 2.0))
    inverse = tl.where(size < 2.0, 2.0, tl.where(size < 4.0, 1.0, 0.5))
    return _nearest(size * inverse) * step


@triton.jit
def _to_fp8(x, largest):  # type: ignore[no-untyped-def]
    """The nearest e4m3 number without its sign: three bits after the first, with a least exponent of -6."""
    size = tl.abs(x)
    # not `tl.minimum`, which would turn NaN into `largest`
    size = tl.where(size > largest, largest, size)
    exponent = tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 121)
    step = ((exponent - 3) << 23).to(tl.float32, bitcast=True)
    return _nearest(size * ((257 - exponent) << 23).to(tl.float32, bitcast=True)) * step


@triton.jit
def _signed(size, x):  # type: ignore[no-untyped-def]
    """`size` with the sign of `x`, also of -0."""
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _groups(  # type: ignore[no-untyped-def]
    x, out, groups, group, largest, least_peak, smallest, FP4: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    at = row[:, None] * group + column[None, :]
    inside = (row < groups)[:, None] & (column < group)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(values), axis=1), least_peak)
    scale, inverse = _scale(peak, largest, smallest)
    scaled = values * inverse[:, None]
    size = _to_fp4(scaled) if FP4 else _to_fp8(scaled, largest)
    tl.store(out + at, _signed(size * scale[:, None], values).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _blocks(x, out, rows, columns, largest, smallest, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block is read twice, some rows at a time: for its peak, and to be rounded."""
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    peaks = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, BLOCK, ROWS):
        at, inside = _rows_of_block(start, column, rows, columns, BLOCK, ROWS)
        peaks = tl.maximum(peaks, tl.abs(tl.load(x + at, mask=inside, other=0.0).to(tl.float32)))
    scale, inverse = _scale(tl.max(tl.max(peaks, axis=1), axis=0), largest, smallest)
    for start in range(0, BLOCK, ROWS):
        at, inside = _rows_of_block(start, column, rows, columns, BLOCK, ROWS)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        size = _to_fp8(values * inverse, largest)
        tl.store(out + at, _signed(size * scale, values).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rows_of_block(start, column, rows, columns, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Places of some rows of a program's block, and which are inside the matrix."""
    row = tl.program_id(1) * BLOCK + start + tl.arange(0, ROWS)
    at = (tl.program_id(0).to(tl.int64) * rows + row[:, None]) * columns + column[None, :]
    return at, (row < rows)[:, None] & (column < columns)[None, :]
