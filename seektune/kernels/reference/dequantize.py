"""Values out of the release's low-bit bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of FP4; bit 3 of the code is the sign."""
FP4_GROUP = 32
"""Columns that share one scale of a row."""
FP8_BLOCK = 128
"""Rows and columns that share one scale."""


def over_blocks(scale: Tensor, rows: int, columns: int) -> Tensor:
    """One value per 128 x 128 block as one per element, `[rows, columns]`."""
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
    table = torch.tensor(E2M1 + tuple(-value for value in E2M1), device=packed.device)
    # a byte at once: row b holds the values of its low and its high nibble
    pairs = torch.cartesian_prod(table, table).flip(-1)
    values = F.embedding(packed.view(torch.uint8).int(), pairs).flatten(-2)
    groups = values.unflatten(-1, (-1, FP4_GROUP))
    return (groups * scale.float().unsqueeze(-1)).flatten(-2)
