"""Export tensors from any source to any format: bytes are copied where possible, otherwise decoded and re-encoded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from seektune.checkpoint.compare import same_values
from seektune.checkpoint.formats import PLAIN, QUANTIZED
from seektune.checkpoint.names import Shape, scale_name
from seektune.checkpoint.source import FolderSource, Source
from seektune.checkpoint.stored import Stored, bands_of, encode, is_stored_as
from seektune.checkpoint.write import LazyTensors


class ExportTarget(Protocol):
    """How an export stores its tensors: a `Format`, or another rule."""

    def kind(self, released: str) -> str:
        """The kind of the tensor with that released name."""
        ...

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """config.json of the result, from the source's."""
        ...


@dataclass
class ExportReport:
    """What an export did with each tensor, by released name; filled while tensors are written."""

    copied: list[str] = field(default_factory=list)
    """Bytes copied from the source or the original."""
    converted: list[str] = field(default_factory=list)
    """Decoded and encoded again."""
    inexact: list[str] = field(default_factory=list)
    """Those of `converted` whose values the format cannot represent exactly."""

    def clear(self) -> None:
        """Empty the lists, for the next shard."""
        for names in (self.copied, self.converted, self.inexact):
            names.clear()


def export_tensors(
    source: Source,
    target: ExportTarget,
    report: ExportReport,
    original: FolderSource | None = None,
) -> Iterator[LazyTensors]:
    """The tensors of an export, in the source's order.

    `original` is the checkpoint that training started from. A tensor that still has the original's values (rounded to
    the source's dtype) keeps the original's bytes, if they are of the target's kind.

    Raises:
        ValueError: the format cannot hold a tensor of that shape.
    """
    for name, shape in source.shapes():
        exporter = _Export(name, target.kind(name), source, original, report)
        yield LazyTensors(_planned(name, shape, exporter.kind), exporter.load)


def _planned(name: str, shape: Shape, kind: str) -> dict[str, tuple[torch.dtype, Shape]]:
    if kind not in QUANTIZED:
        return {name: (PLAIN[kind], shape)}
    quantized = QUANTIZED[kind]
    if not quantized.fits(shape):
        columns = f" with a multiple of {quantized.block[1]} columns" if quantized.packing > 1 else ""
        raise ValueError(
            f"{name} has shape {list(shape)}, but only a matrix{columns} can be stored as {kind}; choose another format"
        )
    weight, scale = quantized.shapes(shape)
    return {name: (quantized.dtype, weight), scale_name(name): (quantized.scale_dtype, scale)}


@dataclass(frozen=True)
class _Export:
    """The export of one tensor."""

    name: str
    kind: str
    source: Source
    original: FolderSource | None
    report: ExportReport

    @torch.no_grad()
    def load(self) -> Mapping[str, Tensor]:
        """The tensors to write, by released name.

        Raises:
            ValueError: a value is not finite and the target kind is quantized, or a file is damaged.
        """
        found = self.source.stored(self.name)
        if not is_stored_as(found, self.kind):
            found = self._original_of(found) or found
        if is_stored_as(found, self.kind):
            (self.report.converted if found.decoded else self.report.copied).append(self.name)
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
        self.report.converted.append(self.name)
        if not exact:
            self.report.inexact.append(self.name)
        return out

    def _original_of(self, found: Stored) -> Stored | None:
        """The original's tensor, if it has the same values after rounding to the source's dtype."""
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
