"""Expert products that dequantize low-bit matrices tile by tile, right before the tensor core products.

Shapes: P token-expert pairs, E experts, I inputs, O outputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK, decoded_columns

ROWS = 16
TILE = 32
"""Pairs of a program (`ROWS`); outputs and inputs of a tile of the matrix, at most one scale group wide (`TILE`)."""


def quantized_expert_linear(x_PI: Tensor, weight: Tensor, scale: Tensor, counts: list[int]) -> Tensor:
    """See `reference.quantized_expert_linear`."""
    out: Tensor = _QuantizedMatmul.apply(x_PI.contiguous(), weight.contiguous(), scale.float().contiguous(), counts)
    return out


class _QuantizedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PI, weight, scale, counts):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, scale)
        ctx.counts = counts
        return _run(x_PI, weight, scale, counts, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_PO):  # type: ignore[no-untyped-def]
        weight, scale = ctx.saved_tensors
        return _run(grad_PO.contiguous(), weight, scale, ctx.counts, transposed=True), None, None, None


def _run(x_PM: Tensor, weight: Tensor, scale: Tensor, counts: list[int], transposed: bool) -> Tensor:
    """`x @ W.T` for each expert, or `x @ W` if `transposed`."""
    fp4 = weight.dtype != torch.float8_e4m3fn
    outputs = weight.shape[1]
    inputs = decoded_columns(weight)
    columns = inputs if transposed else outputs
    out = x_PM.new_empty(len(x_PM), columns)
    tiles = [
        (expert, start + first, start + count)
        for expert, (start, count) in enumerate(_spans(counts))
        for first in range(0, count, ROWS)
    ]
    if tiles:
        plan = torch.tensor(tiles, device=x_PM.device, dtype=torch.int32)
        grid = len(tiles), triton.cdiv(columns, TILE)
        shape = outputs, inputs, scale.shape[1], scale.shape[2]
        _multiply[grid](x_PM, weight.view(torch.uint8), scale, plan, out, *shape, fp4, transposed, ROWS, TILE, *BLOCKS)
    return out


BLOCKS = FP4_GROUP, FP8_BLOCK


def _spans(counts: list[int]) -> list[tuple[int, int]]:
    """First pair and number of pairs of each expert."""
    return [(sum(counts[:expert]), count) for expert, count in enumerate(counts)]


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale,
    plan,
    out,
    outputs,
    inputs,
    scale_rows,
    scale_columns,
    FP4: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    expert = tl.load(plan + tile * 3)
    start = tl.load(plan + tile * 3 + 1)
    end = tl.load(plan + tile * 3 + 2)
    pair = start + tl.arange(0, ROWS)
    lane = tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + lane
    depth = outputs if TRANSPOSED else inputs
    width = inputs if TRANSPOSED else outputs
    total = tl.zeros([ROWS, TILE], tl.float32)
    for first in range(0, depth, TILE):
        k = first + lane
        x_mask = (pair < end)[:, None] & (k < depth)[None, :]
        part = tl.load(x + pair[:, None] * depth + k[None, :], mask=x_mask, other=0.0)
        # the tile of W at [k, column]
        o = k[:, None] if TRANSPOSED else column[None, :]
        i = column[None, :] if TRANSPOSED else k[:, None]
        inside = (k < depth)[:, None] & (column < width)[None, :]
        if FP4:
            byte = tl.load(weight + (expert * outputs + o) * (inputs // 2) + i // 2, mask=inside, other=0).to(tl.int32)
            code = (byte >> ((i % 2) * 4)) & 15
            size = code & 7
            # 0, 0.5, then 1 or 1.5 by the last bit, doubled for each step of the two exponent bits
            value = tl.where(size < 2, 0.5 * size, (1.0 + 0.5 * (size & 1)) * tl.exp2((size >> 1).to(tl.float32) - 1.0))
            value = tl.where(code >= 8, -value, value)
            factor = tl.load(scale + (expert * scale_rows + o) * scale_columns + i // GROUP, mask=inside, other=0.0)
        else:
            byte = tl.load(weight + (expert * outputs + o) * inputs + i, mask=inside, other=0).to(tl.int32)
            exponent = (byte >> 3) & 15
            mantissa = (byte & 7).to(tl.float32)
            normal = (1.0 + mantissa / 8) * tl.exp2(exponent.to(tl.float32) - 7.0)
            value = tl.where(exponent == 0, mantissa * 0.001953125, normal)
            value = tl.where(byte >= 128, -value, value)
            at = (expert * scale_rows + o // BLOCK) * scale_columns + i // BLOCK
            factor = tl.load(scale + at, mask=inside, other=0.0)
        total += tl.dot(part, (value * factor).to(part.dtype), input_precision="ieee")
    mask = (pair < end)[:, None] & (column < width)[None, :]
    tl.store(out + pair[:, None] * width + column[None, :], total.to(out.dtype.element_ty), mask=mask)
