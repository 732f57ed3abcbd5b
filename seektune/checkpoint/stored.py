"""One tensor as a checkpoint stores it, decoded and encoded a band of rows at a time.

A band stays in fast memory that is used again and again, so a large tensor is never widened as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from seektune.checkpoint.formats import PLAIN, QUANTISED
from seektune.checkpoint.names import Shape, scale_name
from seektune.kernels import (
    FP8_BLOCK,
    dequantize_fp8,
    quantize_fp4_closely,
    quantize_fp8,
    recast_fp4_as_fp8,
)

BAND = 2**20
"""Elements of a band, roughly."""

Band = slice | EllipsisType
"""Rows of a matrix, or the whole of anything else."""


@dataclass(frozen=True)
class Stored:
    """A weight and, if its kind is quantised, its scales."""

    kind: str
    weight: Tensor
    scale: Tensor | None = None

    @classmethod
    def empty(cls, kind: str, shape: Shape) -> "Stored":
        """Room for a tensor of this decoded shape."""
        if kind not in QUANTISED:
            return cls(kind, torch.empty(shape, dtype=PLAIN[kind]))
        quantised = QUANTISED[kind]
        weight, scale = quantised.shapes(shape)
        return cls(kind, torch.empty(weight, dtype=quantised.dtype), torch.empty(scale, dtype=quantised.scale_dtype))

    @property
    def shape(self) -> Shape:
        """Shape of the decoded values."""
        shape = tuple(self.weight.shape)
        return shape if self.scale is None else (*shape[:-1], shape[-1] * QUANTISED[self.kind].packing)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What is on disk, by released name."""
        return {name: self.weight} if self.scale is None else {name: self.weight, scale_name(name): self.scale}

    def part(self, band: Band) -> "Stored":
        """A band of it; writing there writes here."""
        if self.scale is None or isinstance(band, EllipsisType):
            return Stored(self.kind, self.weight[band], self.scale)
        height = QUANTISED[self.kind].block[0]
        scales = slice(band.start // height, -(-band.stop // height))
        return Stored(self.kind, self.weight[band], self.scale[scales])

    def copy_(self, other: "Stored") -> None:
        """Take over the bytes of another of the same kind and shape."""
        self.weight.copy_(other.weight)
        if self.scale is not None:
            assert other.scale is not None, "both have scales"
            self.scale.copy_(other.scale)

    def values(self) -> Tensor:
        """Decoded: fp32 of a quantised weight, otherwise as stored."""
        if self.scale is None:
            return self.weight
        decode = QUANTISED[self.kind].decode
        bands = list(bands_of(self.shape))
        if len(bands) == 1:
            return decode(self.weight, self.scale)
        out = torch.empty(self.shape)
        for band in bands:
            out[band] = self.part(band).values()
        return out


def bands_of(shape: Shape) -> Iterator[Band]:
    """The bands of a tensor, each a multiple of 128 rows, so that no block of scales is torn."""
    if len(shape) != 2:
        yield ...
        return
    height = max(BAND // max(shape[1], 1) // FP8_BLOCK, 1) * FP8_BLOCK
    for start in range(0, shape[0], height):
        yield slice(start, min(start + height, shape[0]))


def encode(part: Stored, values: Tensor, kind: str) -> Stored:
    """A band, whose decoded values these are, as another kind: without rounding where its bytes lead to the other's.

    Raises:
        ValueError: the kind is quantised and a value is not finite.
    """
    if kind not in QUANTISED:
        return Stored(kind, values.to(PLAIN[kind]))
    if not values.isfinite().all():
        raise ValueError(f"NaN or infinity cannot be stored as {kind}")
    recast = RECASTS.get((part.kind, kind))
    if recast is None or part.scale is None:
        return Stored(kind, *QUANTISED[kind].encode(values))
    return Stored(kind, *recast(part.weight, part.scale))


def encode_changed(values: Tensor, kind: str) -> Stored:
    """Values that were decoded and then changed, as a kind: as near as its scales allow.

    Raises:
        ValueError: the kind is quantised and a value is not finite.
    """
    if kind == "fp4" and values.isfinite().all():
        return Stored(kind, *quantize_fp4_closely(values))
    return encode(Stored("f32", values), values, kind)


def _with_f32_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight, scale.float()


def _with_e8m0_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    narrow = scale.to(torch.float8_e8m0fnu)
    return (weight, narrow) if torch.equal(narrow.float(), scale) else quantize_fp8(dequantize_fp8(weight, scale))


def _fp4_with_f32_scales(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _with_f32_scales(*recast_fp4_as_fp8(packed, scale))


RECASTS = {
    ("fp4", "fp8"): recast_fp4_as_fp8,
    ("fp4", "fp8_f32"): _fp4_with_f32_scales,
    ("fp8", "fp8_f32"): _with_f32_scales,
    ("fp8_f32", "fp8"): _with_e8m0_scales,
}
"""From the bytes of one kind to another's, exact wherever the ranges and scales allow."""
