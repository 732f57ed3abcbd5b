"""Quantize to the release's low-bit formats: weights to bytes, activations to the nearest representable values."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.dequantize import E2M1, FP4_GROUP, FP8_BLOCK, dequantize_fp4, over_blocks
from seektune.kernels.reference.precision import upcast

FP8_MAX = 448.0
FP4_MAX = 6.0
SMALLEST_PEAK = 1e-4
"""The peak that groups of activations have at least, as serving rounds them to FP8."""
ACTIVATION_GROUP = 128
"""Columns of the input of an FP8 product with a common scale, as serving rounds it."""
SMALLEST = 2.0**-126
"""The smallest scale; groups of zeros have it."""

# x above a boundary rounds up; ties that round up (to an even mantissa) have a boundary just below the tie
_TIES_UP = torch.tensor([0.75, 1.75, 3.5]).nextafter(torch.zeros(3)).tolist()
_BOUNDARIES = (0.25, _TIES_UP[0], 1.25, _TIES_UP[1], 2.5, _TIES_UP[2], 5.0)
_STEPS = tuple(above - below for below, above in pairwise(E2M1))
"""Between a magnitude and the next one."""


def quantize_fp8(weight: Tensor, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    """An e4m3 matrix `[O, I]` and its scales per 128 x 128 block, rounded to nearest even.

    Scales are E8M0 2^ceil(log2(amax / 448)), or F32 amax / 448 without `power_of_two` (the Base release).
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float().abs(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    peaks = padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK)).amax(dim=(1, 3))
    scale = (peaks / FP8_MAX).clamp(min=SMALLEST)
    if power_of_two:
        scale = power_of_two_above(scale)
    values = to_e4m3(weight.float() / over_blocks(scale, rows, columns))
    return values, scale.to(torch.float8_e8m0fnu) if power_of_two else scale


def quantize_fp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed e2m1 bytes (int8 `[O, I/2]`) and E8M0 scales 2^ceil(log2(amax / 6)) per row and 32 columns `[O, I/32]`."""
    groups = weight.float().unflatten(-1, (-1, FP4_GROUP))
    return _pack_fp4(groups, fp4_scale(groups))


def quantize_fp4_closely(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_fp4`, but a group gets half the scale, with its peak clipped, if the squared error is smaller.

    A group that is already on the grid of its scale, with a peak of 6, stays on it after a small change. The smallest
    scale that holds the new peak would be twice as large, and too coarse for all other values.
    """
    groups = weight.float().unflatten(-1, (-1, FP4_GROUP))
    scale = fp4_scale(groups)
    half = (scale / 2).clamp(min=SMALLEST)
    scale = torch.where(_fp4_error(groups, half) < _fp4_error(groups, scale), half, scale)
    return _pack_fp4(groups, scale)


def recast_fp4_as_fp8(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """FP4 bytes as e4m3 with E8M0 block scales, the largest group scale of a block / 2^6 (official `convert.py`).

    Exact if the group scales of a block lie within e4m3's range of each other; the caller checks that.
    """
    values = dequantize_fp4(packed, scale)
    rows, columns = values.shape
    groups = F.pad(scale.float(), (0, -scale.shape[1] % (FP8_BLOCK // FP4_GROUP), 0, -rows % FP8_BLOCK))
    peaks = groups.unflatten(1, (-1, FP8_BLOCK // FP4_GROUP)).unflatten(0, (-1, FP8_BLOCK)).amax(dim=(1, 3))
    block_scale = (peaks / 64).clamp(min=SMALLEST)
    return to_e4m3(values / over_blocks(block_scale, rows, columns)), block_scale.to(torch.float8_e8m0fnu)


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


def encode_rows(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 codes `[N, I]` and fp32 scales `[N, ceil(I / 128)]`, powers of two; no gradient.

    Codes times scales are `fake_quantize_fp8(x, 128)`.
    """
    width = x_NI.shape[1]
    groups = F.pad(x_NI.detach().float(), (0, -width % ACTIVATION_GROUP)).unflatten(1, (-1, ACTIVATION_GROUP))
    scale = _fp8_scale(groups)
    return to_e4m3(groups / scale).flatten(1)[:, :width].contiguous(), scale.squeeze(-1)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last dim (Sylvester order); its size must be a power of two."""
    size = x.shape[-1]
    assert size & (size - 1) == 0, "the Hadamard transform needs a power of two"
    out = upcast(x)
    half = 1
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
        padded = F.pad(x.float(), (0, -size % group)).unflatten(-1, (-1, group))
        return rounding(padded).flatten(-2)[..., :size].to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None, None


def _round_fp8(x: Tensor) -> Tensor:
    scale = _fp8_scale(x)
    return to_e4m3(x / scale).float() * scale


def _fp8_scale(groups: Tensor) -> Tensor:
    return power_of_two_above(groups.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_PEAK) / FP8_MAX)


def _round_fp4(x: Tensor) -> Tensor:
    scale = fp4_scale(x)
    size = (x / scale).abs()
    rounded = torch.zeros_like(size)
    # steps between magnitudes add up exactly; a table would have to be copied to a GPU in each call
    for boundary, step in zip(_BOUNDARIES, _STEPS, strict=True):
        rounded.add_(size > boundary, alpha=step)
    return rounded.copysign(x) * scale


def to_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 number; larger ones become 448."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def fp4_scale(groups: Tensor) -> Tensor:
    """The release's scale of each group `[..., 32]`: the smallest power of two that holds the peak, `[..., 1]`."""
    return power_of_two_above((groups.abs().amax(-1, keepdim=True) / FP4_MAX).clamp(min=SMALLEST))


def _pack_fp4(groups: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _fp4_codes(groups / scale).flatten(-2).unflatten(-1, (-1, 2)).unbind(-1)
    return (low | (high << 4)).view(torch.int8), scale.squeeze(-1).to(torch.float8_e8m0fnu)


def _fp4_error(groups: Tensor, scale: Tensor) -> Tensor:
    """Squared error of each group."""
    size = (groups / scale).abs()
    rounded = torch.tensor(E2M1, device=groups.device)[_fp4_magnitude(size).int()]
    return ((rounded - size) * scale).square().sum(dim=-1, keepdim=True)


def _fp4_magnitude(x: Tensor) -> Tensor:
    """Index of the nearest magnitude, uint8: the number of boundaries below, much faster than `searchsorted`."""
    size = x.abs()
    code = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for boundary in _BOUNDARIES:
        code += size > boundary
    return code


def _fp4_codes(x: Tensor) -> Tensor:
    return _fp4_magnitude(x) | (x.signbit().to(torch.uint8) << 3)


def power_of_two_above(x: Tensor) -> Tensor:
    """2^ceil(log2(x)) without the rounding error of a logarithm."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).int())
