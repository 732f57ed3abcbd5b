"""Dequantize frozen low-bit weights on a GPU in one pass.

Triton evaluates annotations at run time, so this module must not postpone them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.reference.dequantize import decoded_columns

BLOCK = 1024
"""Bytes of a weight that one program decodes."""


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """As `reference.dequantize`, but NaN codes of FP8 give NaN."""
    is_fp4 = weight.dtype == torch.int8
    rows, width = weight.shape
    if out is None:
        out = torch.empty(rows, decoded_columns(weight), dtype=dtype, device=weight.device)
    codes = weight.view(torch.uint8)
    bytes_ = weight.numel()
    grid = (triton.cdiv(bytes_, BLOCK),)
    if is_fp4:
        _fp4[grid](codes, scale.view(torch.uint8), out, bytes_, BLOCK)
        return out
    packed = scale.dtype == torch.float8_e8m0fnu
    scales = scale.view(torch.uint8) if packed else scale
    _fp8[grid](codes, scales, out, bytes_, width, scale.shape[1], packed, BLOCK)
    return out


@triton.jit
def power_of_two(byte):  # type: ignore[no-untyped-def]
    """E8M0 as fp32: byte 0 is 2^-127, a subnormal of fp32, and 255 is NaN."""
    bits = tl.where(byte == 0, 0x00400000, byte << 23)
    return tl.where(byte == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def e2m1(code):  # type: ignore[no-untyped-def]
    """FP4 as fp32: the bits, moved to where fp32 has them, are the number times 2^-126, the exponents' distance."""
    bits = ((code & 8) << 28) | ((code & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def e4m3(code):  # type: ignore[no-untyped-def]
    """FP8 as fp32, by the same move, with a distance of 2^-120; its NaN codes give 480."""
    bits = ((code & 128) << 24) | ((code & 127) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def _fp4(codes, scales, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < count
    byte = tl.load(codes + offset, mask=inside, other=0).to(tl.int32)
    # 16 bytes, 32 values, share a scale; the groups of a row are contiguous
    scale = power_of_two(tl.load(scales + offset // 16, mask=inside, other=0).to(tl.int32))
    dtype = out.dtype.element_ty
    tl.store(out + 2 * offset, (e2m1(byte & 15) * scale).to(dtype), mask=inside)
    tl.store(out + 2 * offset + 1, (e2m1(byte >> 4) * scale).to(dtype), mask=inside)


@triton.jit
def _fp8(codes, scales, out, count, width, blocks, packed: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < count
    code = tl.load(codes + offset, mask=inside, other=0).to(tl.int32)
    block = offset // width // 128 * blocks + offset % width // 128
    scale = tl.load(scales + block, mask=inside, other=0)
    if packed:
        scale = power_of_two(scale.to(tl.int32))
    value = tl.where(code & 127 == 127, float("nan"), e4m3(code))
    tl.store(out + offset, (value * scale).to(out.dtype.element_ty), mask=inside)
