"""Grouped products with packed FP4 and FP8 weights: tiles are decoded in registers, between their load and the product.

Every packed byte is read once for each tile of pairs, and no decoded weight is written. All experts are one launch.
Shapes: P token-expert pairs sorted by expert, E experts, O outputs, I inputs, R rows and C columns of a tile.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.dispatch import is_static
from seektune.kernels.reference.dequantize import decoded_columns
from seektune.kernels.triton.dequantize import e2m1, e4m3, power_of_two
from seektune.kernels.triton.expert_linear import copied
from seektune.kernels.triton.tiles import product

FUSED_ROWS = 512
"""Most pairs per expert, on average, for which decoding each tile again for every 128 pairs costs less than writing and
reading decoded weights. It follows from counting bytes and operations (docs/performance.md); no GPU has measured it."""
TILES = ((16, 32, 128, 4, 4), (64, 128, 64, 4, 3), (128, 128, 64, 8, 3))
"""Pairs and columns of a program, terms of the sum that it adds at a time, warps and stages. The first that holds an
expert's average number of pairs is used. Few pairs need many small programs, or most of the GPU would wait.
Columns and terms divide the 128 of an FP8 block."""
ALIGNED = 16
"""Bytes to whose multiples weights are aligned where a thread may read that many at once."""


def is_fused(pairs: int, experts: int, x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether products are fused with decoding: it depends on shapes, dtypes and devices only, so runs are repeatable.

    Streamed weights are on the GPU while their block runs (`model.device_copies`), so they are fused, too.
    """
    here = all(weight.device == x.device for weight in weights)
    return here and x.dtype in (torch.bfloat16, torch.float32) and 0 < pairs <= FUSED_ROWS * experts


def grouped_mm(
    x_PM: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int], transposed: bool
) -> Tensor:
    """`x @ W.T` of each expert for its pairs, `[P, O]`, or `x @ W`, `[P, I]`, if `transposed`; sums are fp32.

    A weight is int8 `[O, I/2]` or e4m3 `[O, I]`. Nothing here waits for the GPU.
    """
    held = [x.contiguous() for x in (*weights, *scales)]
    if is_static() and len(counts) == 1:
        table = filled_table(held, len(x_PM), x_PM.device)
    else:
        table = copied(expert_table(held, counts), x_PM.device)
    aligned = all(x.data_ptr() % ALIGNED == 0 for x in held[: len(counts)])
    return _multiplied(x_PM, table, weights[0], scales[0], transposed, aligned)


def pair_mm(x_PI: Tensor, experts_P: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`[P, O]`: each row times the matrix of its expert, of all experts' weights and scales; sums are fp32.

    Each row is a group of its own, whose addresses are computed on the GPU: nothing depends on values on the host.
    """
    assert weight.is_contiguous()
    assert scale.is_contiguous()
    ends_P = torch.arange(1, len(x_PI) + 1, device=x_PI.device)
    addresses = [x.data_ptr() + experts_P * x[0].nbytes for x in (weight, scale)]
    aligned = weight.data_ptr() % ALIGNED == weight[0].nbytes % ALIGNED == 0
    return _multiplied(x_PI, torch.stack([*addresses, ends_P]), weight[0], scale[0], False, aligned)


def _multiplied(
    x_PM: Tensor, table: Tensor, weight: Tensor, scale: Tensor, transposed: bool, is_aligned: bool
) -> Tensor:
    """The products of an `expert_table`, whose matrices are all of one's kind and shape."""
    outputs = weight.shape[0]
    inputs = decoded_columns(weight)
    experts = table.shape[1]
    width = inputs if transposed else outputs
    out = x_PM.new_empty(len(x_PM), width)
    rows, columns, depth, warps, stages = tile_of(x_PM, experts)
    # a tile more than the full ones for each expert; programs without a tile end at once
    grid = triton.cdiv(width, columns), len(x_PM) // rows + experts
    sizes = experts, outputs, inputs, scale.shape[1]
    kind = weight.dtype == torch.int8, scale.dtype != torch.float32, transposed, ALIGNED if is_aligned else 1
    tiles = triton.next_power_of_2(experts), rows, columns, depth
    _multiply[grid](x_PM.contiguous(), table, out, *sizes, *kind, *tiles, num_warps=warps, num_stages=stages)
    return out


def tile_of(x_PM: Tensor, experts: int) -> tuple[int, int, int, int, int]:
    """Of `TILES`; fp32 uses the smallest, because it takes twice the memory and no tensor cores."""
    average = triton.cdiv(len(x_PM), experts)
    if x_PM.dtype == torch.float32:
        return TILES[0]
    return next((tile for tile in TILES if tile[0] >= average), TILES[-1])


def expert_table(held: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Per expert the addresses of its weight and of its scales, and the end of its pairs: int64 `[3, E]`."""
    ends = torch.tensor(counts).cumsum(0)
    addresses = torch.tensor([x.data_ptr() for x in held]).view(2, -1)
    return torch.cat([addresses, ends[None]])


def filled_table(held: Sequence[Tensor], pairs: int, device: torch.device) -> Tensor:
    """The `expert_table` of one expert, filled by the GPU: a captured graph would copy it from a host that moved on."""
    table = torch.empty(3, 1, dtype=torch.int64, device=device)
    for row, number in zip(table, (*(x.data_ptr() for x in held), pairs), strict=True):
        row.fill_(number)
    return table


@triton.jit
def _group_of_tile(table, experts, tile, E: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Expert of a tile, its first pair, and the end of the expert's pairs; all 0 for a tile that does not exist."""
    lane = tl.arange(0, E)
    ends = table + 2 * experts
    end = tl.load(ends + lane, mask=lane < experts, other=0).to(tl.int32)
    begin = tl.load(ends + lane - 1, mask=(lane > 0) & (lane < experts), other=0).to(tl.int32)
    tiles = tl.where(lane < experts, (end - begin + ROWS - 1) // ROWS, 0)
    before = tl.cumsum(tiles, axis=0) - tiles
    mine = (before <= tile) & (tile < before + tiles)
    expert = tl.sum(tl.where(mine, lane, 0), axis=0)
    first = tl.sum(tl.where(mine, begin + (tile - before) * ROWS, 0), axis=0)
    return expert, first, tl.sum(tl.where(mine, end, 0), axis=0)


@triton.jit
def _fp4_tile(weight, scale, first, start, outputs, inputs, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Decoded values `[R, C]` from row `first` and column `start` on; whole groups of 32 columns share a scale."""
    row = first + tl.arange(0, R)
    group = start // 32 + tl.arange(0, C // 32)
    inside = (row < outputs)[:, None] & (group < inputs // 32)[None, :]
    at = row[:, None] * (inputs // 32) + group[None, :]
    factor = power_of_two(tl.load(scale + at, mask=inside, other=0).to(tl.int32))[:, :, None]
    place = at[:, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    byte = tl.load(weight + place, mask=inside[:, :, None], other=0).to(tl.int32)
    values = tl.interleave(e2m1(byte & 15) * factor, e2m1(byte >> 4) * factor)
    return tl.reshape(values, [R, C])


@triton.jit
def _fp8_tile(  # type: ignore[no-untyped-def]
    weight, scale, first, start, outputs, inputs, blocks, PACKED: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """As `_fp4_tile`; a tile is within one block, which has one scale."""
    row = first + tl.arange(0, R)
    column = start + tl.arange(0, C)
    inside = (row < outputs)[:, None] & (column < inputs)[None, :]
    code = tl.load(weight + row[:, None] * inputs + column[None, :], mask=inside, other=0).to(tl.int32)
    factor = tl.load(scale + first // 128 * blocks + start // 128)
    if PACKED:
        factor = power_of_two(factor.to(tl.int32))
    return e4m3(code) * factor


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    x, table, out, experts, outputs, inputs, blocks,
    FP4: tl.constexpr, PACKED: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr,
    E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    expert, first, end = _group_of_tile(table, experts, tl.program_id(1), E, ROWS)
    if end == 0:
        return
    weight = tl.multiple_of(tl.load(table + expert).to(tl.pointer_type(tl.uint8)), ALIGN)
    scale = tl.load(table + experts + expert)
    scale = scale.to(tl.pointer_type(tl.uint8)) if PACKED else scale.to(tl.pointer_type(tl.float32))
    pair = first + tl.arange(0, ROWS)
    begin = tl.program_id(0) * COLUMNS
    depth = outputs if TRANSPOSED else inputs
    width = inputs if TRANSPOSED else outputs
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        mask = (pair < end)[:, None] & (k < depth)[None, :]
        part = tl.load(x + pair.to(tl.int64)[:, None] * depth + k[None, :], mask=mask, other=0.0)
        if TRANSPOSED:
            if FP4:
                values = _fp4_tile(weight, scale, start, begin, outputs, inputs, DEPTH, COLUMNS)
            else:
                values = _fp8_tile(weight, scale, start, begin, outputs, inputs, blocks, PACKED, DEPTH, COLUMNS)
            total += product(part, values.to(part.dtype))
        else:
            if FP4:
                values = _fp4_tile(weight, scale, begin, start, outputs, inputs, COLUMNS, DEPTH)
            else:
                values = _fp8_tile(weight, scale, begin, start, outputs, inputs, blocks, PACKED, COLUMNS, DEPTH)
            total += product(part, tl.trans(values.to(part.dtype)))
    column = begin + tl.arange(0, COLUMNS)
    mask = (pair < end)[:, None] & (column < width)[None, :]
    place = pair.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)
