"""The low-bit formats of the release: values out of bytes, and the rounding that serving applies to activations."""

import torch
from torch import Tensor

from seektune.kernels.reference.precision import upcast

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of FP4; bit 3 of the code is the sign."""
FP4_GROUP = 32
"""Columns that share one scale of a row."""
FP8_BLOCK = 128
"""Rows and columns that share one scale."""
FP8_MAX = 448.0
FP4_MAX = 6.0

# x rounds up past a boundary; the ties that go up (to an even mantissa) have their boundary just below.
_TIES_UP = torch.tensor([0.75, 1.75, 3.5]).nextafter(torch.zeros(3))
_BOUNDARIES = torch.tensor([0.25, _TIES_UP[0], 1.25, _TIES_UP[1], 2.5, _TIES_UP[2], 5.0])


def dequantize_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """fp32 values of an e4m3 matrix `[O, I]` with one scale per 128 x 128 block `[ceil(O/128), ceil(I/128)]`.

    Scales are E8M0 (2^(byte - 127), byte 0 included, 255 is NaN) or F32.
    """
    rows, columns = weight.shape
    full = scale.float().repeat_interleave(FP8_BLOCK, 0)[:rows]
    return weight.float() * full.repeat_interleave(FP8_BLOCK, 1)[:, :columns]


def dequantize_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """fp32 values `[O, I]` of packed e2m1 bytes `[O, I/2]` with one E8M0 scale per row and 32 columns `[O, I/32]`.

    Byte k of a row holds column 2k in its low nibble and column 2k+1 in its high nibble.
    """
    codes = packed.view(torch.uint8)
    table = torch.tensor(E2M1 + tuple(-value for value in E2M1), device=packed.device)
    values = table[torch.stack([codes & 15, codes >> 4], dim=-1).long()].flatten(-2)
    groups = values.unflatten(-1, (-1, FP4_GROUP))
    return (groups * scale.float().unsqueeze(-1)).flatten(-2)


def fake_quantize_fp8(x: Tensor, group: int = 64) -> Tensor:
    """Round the last dim to e4m3 with a power-of-two scale per `group` columns, and back (official `act_quant`).

    The gradient passes straight through.
    """
    return _StraightThrough.apply(x, group, _round_fp8)


def fake_quantize_fp4(x: Tensor, group: int = FP4_GROUP) -> Tensor:
    """Round the last dim to e2m1 with a power-of-two scale per `group` columns, and back (official `fp4_act_quant`).

    The gradient passes straight through.
    """
    return _StraightThrough.apply(x, group, _round_fp4)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last dim (Sylvester order); its size must be a power of two."""
    size = x.shape[-1]
    assert size & (size - 1) == 0, "the Hadamard transform needs a power of two"
    out, half = upcast(x), 1
    while half < size:
        pairs = out.unflatten(-1, (-1, 2, half))
        first, second = pairs.unbind(-2)
        out = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        half *= 2
    return (out * size**-0.5).to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, rounding):  # type: ignore[no-untyped-def]
        size = x.shape[-1]
        padded = torch.nn.functional.pad(x.float(), (0, -size % group)).unflatten(-1, (-1, group))
        return rounding(padded).flatten(-2)[..., :size].to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None, None


def _round_fp8(x: Tensor) -> Tensor:
    scale = _power_of_two_scale(x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / FP8_MAX)
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def _round_fp4(x: Tensor) -> Tensor:
    scale = _power_of_two_scale(x.abs().amax(-1, keepdim=True).clamp(min=FP4_MAX * 2.0**-126) / FP4_MAX)
    index = torch.bucketize((x / scale).abs(), _BOUNDARIES.to(x.device))
    return torch.tensor(E2M1, device=x.device)[index].copysign(x) * scale


def _power_of_two_scale(x: Tensor) -> Tensor:
    """2^ceil(log2(x)) without the rounding error of a logarithm."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).int())
