"""Dequantize the release's FP4 and FP8 weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of FP4; bit 3 of the code is the sign."""
FP4_GROUP = 32
"""Columns that share one scale of a row."""
NVFP4_GROUP = 16
"""Columns that share one scale of a row in NVFP4."""
FP4_PER_BYTE = 2
"""Values in one byte of packed FP4."""
FP8_BLOCK = 128
"""Rows and columns that share one scale."""


def values_per_element(dtype: torch.dtype) -> int:
    """How many values one stored element of a weight holds: two where it is packed FP4 (int8), otherwise one."""
    return FP4_PER_BYTE if dtype == torch.int8 else 1


def decoded_columns(weight: Tensor) -> int:
    """I of a weight `[..., O, I]` from its stored form, `[..., O, I/2]` where it is packed FP4."""
    return weight.shape[-1] * values_per_element(weight.dtype)


def over_blocks(scale: Tensor, rows: int, columns: int) -> Tensor:
    """Expand one value per 128 x 128 block to one per element, `[rows, columns]`."""
    full = scale.repeat_interleave(FP8_BLOCK, 0)[:rows]
    return full.repeat_interleave(FP8_BLOCK, 1)[:, :columns]


def dequantize_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """fp32 values of an e4m3 matrix `[O, I]` with one scale per 128 x 128 block `[ceil(O/128), ceil(I/128)]`.

    Scales are E8M0 (2^(byte - 127), byte 0 included, 255 is NaN) or F32.
    """
    return weight.float() * over_blocks(scale.float(), *weight.shape)


def dequantize_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """fp32 values `[O, I]` of packed e2m1 bytes `[O, I/2]` with one E8M0 scale per row and 32 columns `[O, I/32]`.

    Byte k of a row holds column 2k in its low nibble and column 2k+1 in its high nibble.
    """
    groups = _e2m1(packed).unflatten(-1, (-1, FP4_GROUP))
    return (groups * scale.float().unsqueeze(-1)).flatten(-2)


def dequantize_nvfp4(packed: Tensor, scale: Tensor, matrix_scale: Tensor) -> Tensor:
    """fp32 values `[O, I]` of packed e2m1 bytes `[O, I/2]`, each rounded once from its exact product.

    `scale` is E4M3, one per row and 16 columns `[O, I/16]`, and `matrix_scale` an F32 scalar.
    """
    groups = _e2m1(packed).unflatten(-1, (-1, NVFP4_GROUP))
    # exact: the product of an e2m1 and an e4m3 number has at most six significant bits
    return (groups * scale.float().unsqueeze(-1)).flatten(-2) * matrix_scale


def _e2m1(packed: Tensor) -> Tensor:
    """fp32 values `[O, I]` of packed codes `[O, I/2]`, without scales."""
    table = torch.tensor(E2M1 + tuple(-value for value in E2M1), device=packed.device)
    # one lookup per byte: row b holds the values of the low and the high nibble of b
    pairs = torch.cartesian_prod(table, table).flip(-1)
    return F.embedding(packed.view(torch.uint8).int(), pairs).flatten(-2)


BAND = 2**20
"""Elements that are dequantized at a time."""
SHIFTED = 2.0**120
"""Factor from a bf16 or fp32 number to the e4m3 number with the same bits: 2^(127 - 7), from the exponent biases."""
LARGEST_SCALE = 2.0**7
"""Above this, a scale times `SHIFTED` overflows fp32."""


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Values `[O, I]` in `dtype` of a packed FP4 (int8) or an FP8 matrix, each rounded once from its exact product.

    They are written to `out` if given, because allocating memory costs as much as the computation.

    Equal to `dequantize_fp4` or `dequantize_fp8` and a cast, except that a NaN code of FP8 becomes 480; loading weights
    from a file rejects NaN codes.
    """
    columns = decoded_columns(weight)
    if out is None:
        out = torch.empty(weight.shape[0], columns, dtype=dtype, device=weight.device)
    assert (out.shape, out.dtype) == ((weight.shape[0], columns), dtype)
    if out.is_meta:  # only shapes are needed, and there are no values to read
        return out
    if weight.dtype == torch.int8:
        return _fp4(weight, scale, out) if dtype in _PAIRS else out.copy_(dequantize_fp4(weight, scale))
    assert weight.dtype == torch.float8_e4m3fn, f"{weight.dtype} is not the dtype of a low-bit weight"
    if dtype not in _E4M3 or scale.float().abs().amax() > LARGEST_SCALE:
        return out.copy_(dequantize_fp8(weight, scale))
    return _fp8(weight, scale, out)


def _fp4(packed: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    rows, columns = out.shape
    scales = scale.to(out.dtype).unsqueeze(-1)
    pairs = _PAIRS[out.dtype].to(out.device)
    height = max(BAND // columns, 1)
    for start in range(0, rows, height):
        band = slice(start, start + height)
        index = packed[band].view(torch.uint8).flatten().int()
        torch.index_select(pairs, 0, index, out=out[band].view(pairs.dtype).flatten())
        out[band].unflatten(1, (-1, FP4_GROUP)).mul_(scales[band])
    return out


def _fp8(weight: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    rows, columns = out.shape
    word, shift, mask = _E4M3[out.dtype]
    codes = weight.view(torch.int8)
    words = out.view(word)
    scales = scale.float() * SHIFTED
    if scale.dtype == torch.float8_e8m0fnu:
        scales = scales.to(out.dtype)  # exact, as it is a power of two
    scales = scales.repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    height = max(BAND // columns // FP8_BLOCK, 1) * FP8_BLOCK
    for start in range(0, rows, height):
        band = slice(start, start + height)
        # widening a signed byte repeats its sign bit; the mask keeps only the leading copy
        words[band].copy_(codes[band]).bitwise_left_shift_(shift).bitwise_and_(mask)
        first = start // FP8_BLOCK
        whole = out[band].shape[0] // FP8_BLOCK
        blocks, rest = out[band].split([whole * FP8_BLOCK, out[band].shape[0] % FP8_BLOCK])
        blocks.unflatten(0, (whole, FP8_BLOCK)).mul_(scales[first : first + whole, None])
        if len(rest):
            rest.mul_(scales[first + whole])
    return out


def _pairs(dtype: torch.dtype, word: torch.dtype) -> Tensor:
    """Both values of every byte, packed into one word."""
    table = torch.tensor(E2M1 + tuple(-value for value in E2M1), dtype=dtype)
    byte = torch.arange(256)
    return torch.stack([table[byte & 15], table[byte >> 4]], dim=-1).view(word).flatten()


_PAIRS = {torch.bfloat16: _pairs(torch.bfloat16, torch.int32), torch.float32: _pairs(torch.float32, torch.int64)}
_E4M3 = {torch.bfloat16: (torch.int16, 4, 0x07F0 - 2**15), torch.float32: (torch.int32, 20, 0x07F00000 - 2**31)}
"""By dtype: word type, left shift of e4m3's exponent and mantissa in the word, and mask of the bits to keep."""
