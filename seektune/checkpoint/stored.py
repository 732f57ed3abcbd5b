"""One tensor as a checkpoint stores it, decoded and encoded one band of rows at a time.

A band fits into the cache, and a large tensor is never held in fp32 as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import EllipsisType

import torch
from torch import Tensor

from seektune.checkpoint.formats import PLAIN, QUANTIZED, with_f32_scales
from seektune.checkpoint.names import Shape, scale_name
from seektune.kernels import (
    FP8_BLOCK,
    dequantize_fp8,
    quantize_fp4_closely,
    quantize_fp8,
    recast_fp4_as_fp8,
)

BAND = 2**20
"""Approximate number of elements in a band."""

Band = slice | EllipsisType
"""Rows of a matrix; `...` for tensors of other ranks."""


@dataclass(frozen=True)
class Stored:
    """A weight and, if its kind is quantized, its scales."""

    kind: str
    weight: Tensor
    scale: Tensor | None = None
    decoded: bool = field(default=False, kw_only=True)
    """Whether these are the values of a tensor that is stored otherwise, as a kind that is only read."""

    @classmethod
    def empty(cls, kind: str, shape: Shape) -> "Stored":
        """Uninitialized memory for a tensor of this decoded shape."""
        if kind not in QUANTIZED:
            return cls(kind, torch.empty(shape, dtype=PLAIN[kind]))
        quantized = QUANTIZED[kind]
        weight, scale = quantized.shapes(shape)
        return cls(kind, torch.empty(weight, dtype=quantized.dtype), torch.empty(scale, dtype=quantized.scale_dtype))

    @property
    def shape(self) -> Shape:
        """Shape of the decoded values."""
        shape = tuple(self.weight.shape)
        return shape if self.scale is None else (*shape[:-1], shape[-1] * QUANTIZED[self.kind].packing)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors to store, by released name."""
        return {name: self.weight} if self.scale is None else {name: self.weight, scale_name(name): self.scale}

    def part(self, band: Band) -> "Stored":
        """A band as a view: writing to it writes to this tensor."""
        if self.scale is None or isinstance(band, EllipsisType):
            return Stored(self.kind, self.weight[band], self.scale)
        height = QUANTIZED[self.kind].block[0]
        scales = slice(band.start // height, -(-band.stop // height))
        return Stored(self.kind, self.weight[band], self.scale[scales])

    def copy_(self, other: "Stored") -> None:
        """Copy the bytes of another tensor of the same kind and shape."""
        self.weight.copy_(other.weight)
        if self.scale is not None:
            assert other.scale is not None, "both have scales"
            self.scale.copy_(other.scale)

    def values(self) -> Tensor:
        """Decoded values: fp32 of a quantized weight, otherwise as stored."""
        if self.scale is None:
            return self.weight
        decode = QUANTIZED[self.kind].decode
        bands = list(bands_of(self.shape))
        if len(bands) == 1:
            return decode(self.weight, self.scale)
        out = torch.empty(self.shape)
        for band in bands:
            out[band] = self.part(band).values()
        return out


def bands_of(shape: Shape) -> Iterator[Band]:
    """The bands of a tensor; each starts at a multiple of 128 rows, so that no block of scales is split."""
    if len(shape) != 2:
        yield ...
        return
    height = max(BAND // max(shape[1], 1) // FP8_BLOCK, 1) * FP8_BLOCK
    for start in range(0, shape[0], height):
        yield slice(start, min(start + height, shape[0]))


def all_finite(values: Tensor) -> bool:
    """Whether every value is a finite number in bf16, and so in every dtype in which a model computes."""
    if not values.is_floating_point() or not values.numel():
        return True
    # NaN is the smallest and the largest of values that hold it; thirty times faster than to look at each value
    smallest, largest = torch.aminmax(values)
    return bool(smallest.bfloat16().isfinite() & largest.bfloat16().isfinite())


def encode(part: Stored, values: Tensor, kind: str) -> Stored:
    """Encode a band as another kind, given its decoded `values`; bytes are recast without rounding where possible.

    Raises:
        ValueError: the kind is quantized and a value is not finite.
    """
    if kind not in QUANTIZED:
        return Stored(kind, values.to(PLAIN[kind]))
    if not values.isfinite().all():
        raise ValueError(f"NaN or infinity cannot be stored as {kind}")
    recast = RECASTS.get((part.kind, kind))
    if recast is None or part.scale is None:
        return Stored(kind, *QUANTIZED[kind].encode(values))
    return Stored(kind, *recast(part.weight, part.scale))


def encode_changed(values: Tensor, kind: str) -> Stored:
    """Encode merged values: a group of FP4 keeps its scale after a small change, if that loses less.

    Raises:
        ValueError: the kind is quantized and a value is not finite.
    """
    if kind == "fp4" and values.isfinite().all():
        return Stored(kind, *quantize_fp4_closely(values))
    return encode(Stored("f32", values), values, kind)


def is_stored_as(found: Stored, kind: str) -> bool:
    """Whether a tensor has that kind already, so that its bytes can be copied; scales tell whether they are powers."""
    if kind == "fp8_f32_pow2" and found.kind == "fp8_f32":
        assert found.scale is not None, "this kind has scales"
        return _are_powers_of_two(found.scale)
    return found.kind == kind


def _are_powers_of_two(scale: Tensor) -> bool:
    return torch.equal(scale.to(torch.float8_e8m0fnu).float(), scale)


def _with_e8m0_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    if _are_powers_of_two(scale):
        return weight, scale.to(torch.float8_e8m0fnu)
    return quantize_fp8(dequantize_fp8(weight, scale))


def _with_power_of_two_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return with_f32_scales(*_with_e8m0_scales(weight, scale))


def _fp4_with_f32_scales(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return with_f32_scales(*recast_fp4_as_fp8(packed, scale))


RECASTS = {
    ("fp4", "fp8"): recast_fp4_as_fp8,
    ("fp4", "fp8_f32"): _fp4_with_f32_scales,
    ("fp4", "fp8_f32_pow2"): _fp4_with_f32_scales,
    ("fp8", "fp8_f32"): with_f32_scales,
    ("fp8", "fp8_f32_pow2"): with_f32_scales,
    ("fp8_f32", "fp8"): _with_e8m0_scales,
    ("fp8_f32", "fp8_f32_pow2"): _with_power_of_two_scales,
}
"""Recast the bytes of one kind as another's; exact where the ranges and scales allow it."""
