"""Tensors from any source into any format: unchanged bytes where possible, otherwise decoded and encoded again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seektune.checkpoint.formats import PLAIN, QUANTISED, Format
from seektune.checkpoint.names import Shape, scale_name
from seektune.checkpoint.source import FolderSource, Source
from seektune.checkpoint.write import Piece
from seektune.kernels import recast_fp4_as_fp8


@dataclass
class Tally:
    """What an export did with each tensor, by released name; filled while the pieces are written."""

    copied: list[str] = field(default_factory=list)
    """Bytes taken over unchanged, from the source or the original."""
    converted: list[str] = field(default_factory=list)
    """Encoded anew."""
    inexact: list[str] = field(default_factory=list)
    """Encoded anew with values that the format cannot hold exactly."""

    def clear(self) -> None:
        """Begin anew, for the next shard."""
        for names in (self.copied, self.converted, self.inexact):
            names.clear()


def pieces(source: Source, target: Format, tally: Tally, original: FolderSource | None = None) -> Iterator[Piece]:
    """The tensors of an export, in the source's order.

    `original` is the checkpoint that training started from: a tensor whose values are still the original's (rounded to
    the source's dtype) keeps the original's bytes, where those are of the target's kind.
    """
    for name, shape in source.shapes():
        exporter = _Export(name, shape, target.kind(name), source, original, tally)
        yield Piece(_planned(name, shape, exporter.kind), exporter.load)


def _planned(name: str, shape: Shape, kind: str) -> dict[str, tuple[torch.dtype, Shape]]:
    if kind not in QUANTISED:
        return {name: (PLAIN[kind], shape)}
    quantised = QUANTISED[kind]
    weight, scale = quantised.shapes(shape)
    return {name: (quantised.dtype, weight), scale_name(name): (quantised.scale_dtype, scale)}


@dataclass(frozen=True)
class _Export:
    """One tensor on its way from source to target."""

    name: str
    shape: Shape
    kind: str
    source: Source
    original: FolderSource | None
    tally: Tally

    @torch.no_grad()
    def load(self) -> Mapping[str, Tensor]:
        """The stored tensors, by released name."""
        values = self.source.values(self.name)
        holder = self._holder(values)
        if holder is not None and holder.kind(self.name) == self.kind:
            self.tally.copied.append(self.name)
            return holder.stored(self.name)
        encoded = self._encode(values, holder)
        self.tally.converted.append(self.name)
        if not torch.equal(self._decode(encoded), values.float() if values.is_floating_point() else values):
            self.tally.inexact.append(self.name)
        return encoded

    def _holder(self, values: Tensor) -> FolderSource | None:
        """The folder whose bytes hold exactly these values."""
        if isinstance(self.source, FolderSource) and self.source.kind(self.name) == self.kind:
            return self.source
        if self.original is not None and self.original.holds(self.name):
            before = self.original.values(self.name).to(values.dtype)
            if before.shape == values.shape and torch.equal(before, values.cpu()):
                return self.original
        return self.source if isinstance(self.source, FolderSource) else None

    def _encode(self, values: Tensor, holder: FolderSource | None) -> dict[str, Tensor]:
        if self.kind not in QUANTISED:
            return {self.name: values.to(PLAIN[self.kind])}
        recast = RECASTS.get((holder.kind(self.name), self.kind)) if holder is not None else None
        if holder is not None and recast is not None:
            weight, scale = recast(*holder.stored(self.name).values())
        else:
            weight, scale = QUANTISED[self.kind].encode(values)
        return {self.name: weight, scale_name(self.name): scale}

    def _decode(self, encoded: Mapping[str, Tensor]) -> Tensor:
        if self.kind not in QUANTISED:
            stored = encoded[self.name]
            return stored.float() if stored.is_floating_point() else stored
        return QUANTISED[self.kind].decode(*encoded.values())


def _with_f32_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight, scale.float()


def _fp4_with_f32_scales(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _with_f32_scales(*recast_fp4_as_fp8(packed, scale))


RECASTS = {
    ("fp4", "fp8"): recast_fp4_as_fp8,
    ("fp8", "fp8_f32"): _with_f32_scales,
    ("fp4", "fp8_f32"): _fp4_with_f32_scales,
}
"""From the bytes of one kind to another's without rounding, wherever the ranges allow."""
