"""Grouped products of FP8 rows with packed weights on FP8 tensor cores; sums of blocks of 128 terms are added in fp32.

FP4 values are decoded to e4m3 in registers: a block's codes of a row times powers of two, which e4m3 holds exactly if
the row's four scales there are within 2^14 of each other; otherwise 32 terms, which share a scale, are a block.
Shapes: P token-expert pairs sorted by expert, E experts, O outputs, I inputs, K blocks of 128 inputs, R rows and C
columns of a tile.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.reference.dequantize import decoded_columns
from seektune.kernels.reference.quantize import ACTIVATION_GROUP, FP8_MAX, SMALLEST, SMALLEST_PEAK
from seektune.kernels.triton.dequantize import e2m1, power_of_two
from seektune.kernels.triton.expert_linear import copied
from seektune.kernels.triton.fake_quantize import _scale, _to_fp8
from seektune.kernels.triton.lowbit_grouped_mm import ALIGNED, _group_of_tile, expert_table

CAPABILITY = (8, 9)
"""Least GPU generation with products of e4m3."""
TILES = ((16, 32, 4, 4), (64, 128, 4, 3), (128, 128, 8, 3))
"""As `lowbit_grouped_mm.TILES`, but each adds 128 terms at a time."""
ROWS = 16
"""Rows whose groups a program encodes."""


def has_fp8_products(device: torch.device) -> bool:
    """Whether a GPU has them; Triton's interpreter, on a CPU, does."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY


def encode_rows(x_PI: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.encode_rows`; no gradient, and any GPU."""
    pairs, inputs = x_PI.shape
    blocks = triton.cdiv(inputs, ACTIVATION_GROUP)
    codes = torch.empty(pairs, inputs, dtype=torch.float8_e4m3fn, device=x_PI.device)
    scales = torch.empty(pairs, blocks, dtype=torch.float32, device=x_PI.device)
    grid = triton.cdiv(pairs, ROWS), blocks
    limits = FP8_MAX, SMALLEST_PEAK, SMALLEST
    if codes.numel():
        given = x_PI.detach().contiguous(), codes.view(torch.uint8), scales
        _encode[grid](*given, pairs, inputs, blocks, *limits, ROWS, ACTIVATION_GROUP)
    return codes, scales


def fp8_grouped_mm(x_PI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """`fake_quantize_fp8(x, 128) @ W.T` of each expert for its pairs, `[P, O]` in x's dtype.

    A weight is int8 `[O, I/2]` or e4m3 `[O, I]`. Nothing here waits for the GPU.
    """
    outputs = weights[0].shape[0]
    inputs = decoded_columns(weights[0])
    out = x_PI.new_empty(len(x_PI), outputs)
    average = triton.cdiv(len(x_PI), len(counts))
    rows, columns, warps, stages = next((tile for tile in TILES if tile[0] >= average), TILES[-1])
    grid = triton.cdiv(outputs, columns), len(x_PI) // rows + len(counts)
    held = [x.contiguous() for x in (*weights, *scales)]
    table = expert_table(held, counts)
    aligned = ALIGNED if not bool((table[0] % ALIGNED).any()) else 1
    sizes = len(counts), outputs, inputs, scales[0].shape[1]
    kind = weights[0].dtype == torch.int8, scales[0].dtype != torch.float32, aligned
    tiles = triton.next_power_of_2(len(counts)), rows, columns
    codes, factors = encode_rows(x_PI)
    _multiply_fp8[grid](
        *(codes.view(torch.uint8), factors, copied(table, x_PI.device), out, *sizes, *kind, *tiles),
        num_warps=warps,
        num_stages=stages,
    )
    return out


@triton.jit
def _encode(  # type: ignore[no-untyped-def]
    x, codes, scales, pairs, inputs, blocks, largest, least_peak, smallest, R: tl.constexpr, G: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.program_id(1) * G + tl.arange(0, G)
    at = row[:, None] * inputs + column[None, :]
    inside = (row < pairs)[:, None] & (column < inputs)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(values), axis=1), least_peak)
    scale, inverse = _scale(peak, largest, smallest)
    bits = _to_fp8(values * inverse[:, None], largest).to(tl.int32, bitcast=True)
    # exponents of fp32 and e4m3 differ by 120; below 2^-6, steps are 2^-9
    is_small = bits < 121 << 23
    small = (tl.where(is_small, bits, 0).to(tl.float32, bitcast=True) * 512.0).to(tl.int32)
    code = tl.where(is_small, small, (bits - (120 << 23)) >> 20)
    code = tl.where(values != values, 0x7F, code)
    sign = (values.to(tl.int32, bitcast=True) >> 24) & 0x80
    tl.store(codes + at, (code | sign).to(tl.uint8), mask=inside)
    tl.store(scales + row * blocks + tl.program_id(1), scale, mask=row < pairs)


@triton.jit
def _rows(x, pair, end, start, inputs, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of pairs, `[R, DEPTH]`."""
    k = start + tl.arange(0, DEPTH)
    mask = (pair < end)[:, None] & (k < inputs)[None, :]
    codes = tl.load(x + pair.to(tl.int64)[:, None] * inputs + k[None, :], mask=mask, other=0)
    return codes.to(tl.float8e4nv, bitcast=True)


@triton.jit
def _scales_agree(scale, begin, outputs, inputs, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether e4m3 holds the FP4 values of every row and block: 0.5 to 6 times 2^-8 to 2^6.

    Scales of 2^-126 and less, as groups of zeros have, do not matter.
    """
    row = begin + tl.arange(0, COLUMNS)
    largest = 0
    for start in range(0, inputs // 32, 32):
        group = start + tl.reshape(tl.arange(0, 32), [8, 4])
        inside = (row < outputs)[:, None, None] & (group < inputs // 32)[None, :, :]
        at = row[:, None, None] * (inputs // 32) + group[None, :, :]
        byte = tl.load(scale + at, mask=inside, other=0).to(tl.int32)
        gap = tl.where(byte > 1, tl.max(byte, axis=2, keep_dims=True) - byte, 0)
        largest = tl.maximum(largest, tl.max(tl.reshape(gap, [COLUMNS * 32]), axis=0))
    return largest <= 14


@triton.jit
def _fp4_codes(weight, scale, begin, start, outputs, inputs, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """e4m3 values `[C, DEPTH]` of weight rows, and what each row has to be multiplied by."""
    row = begin + tl.arange(0, COLUMNS)
    group = start // 32 + tl.arange(0, DEPTH // 32)
    inside = (row < outputs)[:, None] & (group < inputs // 32)[None, :]
    at = row[:, None] * (inputs // 32) + group[None, :]
    exponent = tl.load(scale + at, mask=inside, other=0).to(tl.int32)
    top = tl.max(exponent, axis=1)
    relative = exponent - top[:, None] + 6
    factor = tl.where(relative < -8, 0, (127 + relative) << 23).to(tl.float32, bitcast=True)[:, :, None]
    place = at[:, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    byte = tl.load(weight + place, mask=inside[:, :, None], other=0).to(tl.int32)
    values = tl.interleave(e2m1(byte & 15) * factor, e2m1(byte >> 4) * factor)
    return tl.reshape(values, [COLUMNS, DEPTH]).to(tl.float8e4nv), power_of_two(top) * 0.015625


@triton.jit
def _fp4_sum(  # type: ignore[no-untyped-def]
    x, factors, weight, scale, pair, end, begin, outputs, inputs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inputs, DEPTH):
        rows = _rows(x, pair, end, start, inputs, DEPTH)
        values, unit = _fp4_codes(weight, scale, begin, start, outputs, inputs, COLUMNS, DEPTH)
        factor = tl.load(factors + pair.to(tl.int64) * ((inputs + 127) // 128) + start // 128, mask=pair < end, other=0)
        total += tl.dot(rows, tl.trans(values)) * factor[:, None] * unit[None, :]
    return total


@triton.jit
def _fp8_sum(  # type: ignore[no-untyped-def]
    x, factors, weight, scale, pair, end, begin, outputs, inputs, blocks,
    PACKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    row = begin + tl.arange(0, COLUMNS)
    for start in range(0, inputs, 128):
        rows = _rows(x, pair, end, start, inputs, 128)
        values = _rows(weight, row, outputs, start, inputs, 128)
        factor = tl.load(factors + pair.to(tl.int64) * ((inputs + 127) // 128) + start // 128, mask=pair < end, other=0)
        unit = tl.load(scale + begin // 128 * blocks + start // 128)
        if PACKED:
            unit = power_of_two(unit.to(tl.int32))
        total += tl.dot(rows, tl.trans(values)) * (factor * unit)[:, None]
    return total


@triton.jit
def _multiply_fp8(  # type: ignore[no-untyped-def]
    x, factors, table, out, experts, outputs, inputs, blocks,
    FP4: tl.constexpr, PACKED: tl.constexpr, ALIGN: tl.constexpr,
    E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, end = _group_of_tile(table, experts, tl.program_id(1), E, ROWS)
    if end == 0:
        return
    weight = tl.multiple_of(tl.load(table + expert).to(tl.pointer_type(tl.uint8)), ALIGN)
    scale = tl.load(table + experts + expert)
    scale = scale.to(tl.pointer_type(tl.uint8)) if PACKED else scale.to(tl.pointer_type(tl.float32))
    pair = first + tl.arange(0, ROWS)
    begin = tl.program_id(0) * COLUMNS
    if FP4:
        if _scales_agree(scale, begin, outputs, inputs, COLUMNS):
            total = _fp4_sum(x, factors, weight, scale, pair, end, begin, outputs, inputs, ROWS, COLUMNS, 128)
        else:
            total = _fp4_sum(x, factors, weight, scale, pair, end, begin, outputs, inputs, ROWS, COLUMNS, 32)
    else:
        total = _fp8_sum(x, factors, weight, scale, pair, end, begin, outputs, inputs, blocks, PACKED, ROWS, COLUMNS)
    column = begin + tl.arange(0, COLUMNS)
    mask = (pair < end)[:, None] & (column < outputs)[None, :]
    place = pair.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)
