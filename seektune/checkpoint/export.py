"""Tensors from any source into any format: unchanged bytes where possible, otherwise decoded and encoded again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from seektune.checkpoint.compare import same_values
from seektune.checkpoint.formats import PLAIN, QUANTISED
from seektune.checkpoint.names import Shape, scale_name
from seektune.checkpoint.source import FolderSource, Source
from seektune.checkpoint.stored import Stored, bands_of, encode
from seektune.checkpoint.write import FilePiece


class Kinds(Protocol):
    """A format, or another rule of how tensors are to be stored."""

    def kind(self, released: str) -> str:
        """How the tensor of that released name is stored."""
        ...

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """config.json of the result, from the source's."""
        ...


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


def pieces(source: Source, target: Kinds, tally: Tally, original: FolderSource | None = None) -> Iterator[FilePiece]:
    """The tensors of an export, in the source's order.

    `original` is the checkpoint that training started from: a tensor whose values are still the original's (rounded to
    the source's dtype) keeps the original's bytes, where those are of the target's kind.

    Raises:
        ValueError: the format cannot hold a tensor of such a shape.
    """
    for name, shape in source.shapes():
        exporter = _Export(name, target.kind(name), source, original, tally)
        yield FilePiece(_planned(name, shape, exporter.kind), exporter.load)


def _planned(name: str, shape: Shape, kind: str) -> dict[str, tuple[torch.dtype, Shape]]:
    if kind not in QUANTISED:
        return {name: (PLAIN[kind], shape)}
    quantised = QUANTISED[kind]
    if not quantised.fits(shape):
        columns = f" with a multiple of {quantised.block[1]} columns" if quantised.packing > 1 else ""
        raise ValueError(
            f"{name} has shape {list(shape)}, but only a matrix{columns} can be stored as {kind}; choose another format"
        )
    weight, scale = quantised.shapes(shape)
    return {name: (quantised.dtype, weight), scale_name(name): (quantised.scale_dtype, scale)}


@dataclass(frozen=True)
class _Export:
    """One tensor on its way from source to target."""

    name: str
    kind: str
    source: Source
    original: FolderSource | None
    tally: Tally

    @torch.no_grad()
    def load(self) -> Mapping[str, Tensor]:
        """The stored tensors, by released name.

        Raises:
            ValueError: a value is not finite and a quantised kind is asked for, or a file is damaged.
        """
        found = self.source.stored(self.name)
        if found.kind != self.kind:
            found = self._original_of(found) or found
        if found.kind == self.kind:
            self.tally.copied.append(self.name)
            return found.tensors(self.name)
        return self._converted(found).tensors(self.name)

    def _converted(self, found: Stored) -> Stored:
        out = Stored.empty(self.kind, found.shape)
        exact = True
        for band in bands_of(found.shape):
            part = found.part(band)
            values = part.values()
            try:
                encoded = encode(part, values, self.kind)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None
            exact = exact and same_values(encoded.values(), values)
            out.part(band).copy_(encoded)
        self.tally.converted.append(self.name)
        if not exact:
            self.tally.inexact.append(self.name)
        return out

    def _original_of(self, found: Stored) -> Stored | None:
        """The original's tensor, if the values are still the same, rounded to the source's dtype."""
        if self.original is None or not self.original.holds(self.name):
            return None
        before = self.original.stored(self.name)
        if before.shape != found.shape:
            return None
        for band in bands_of(found.shape):
            values = found.part(band).values().cpu()
            if not same_values(before.part(band).values().to(values.dtype), values):
                return None
        return before
