"""Tensors that every export carries byte for byte, whatever its format: the stages of a DSpark drafter, mostly.

They are low-bit in the release, and decoding and encoding them again would change them; training leaves them alone.
Stages that were trained are in full precision, and are encoded like other tensors; where nothing but them was trained,
everything else is carried.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seektune.checkpoint.export import ExportTarget
from seektune.checkpoint.files import TensorFiles
from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.names import Shape
from seektune.checkpoint.nvfp4 import NVFP4
from seektune.checkpoint.source import FolderSource, Source
from seektune.checkpoint.stored import Stored
from seektune.io.config_json import DRAFTER

MARK = "mtp.0.main_proj.weight"
"""A tensor that DSpark stages have, and the MTP block of the preview does not."""

SMALL = 2**16
"""Bytes of the largest tensor in a digest."""


def carried_names(names: Collection[str]) -> frozenset[str]:
    """Those of a checkpoint's tensor names that belong to DSpark stages."""
    return frozenset(name for name in names if name.startswith(DRAFTER)) if MARK in names else frozenset()


def carried_digest(folder: Path) -> str:
    """SHA-256 of the small tensors of a folder's DSpark stages: norms, biases, the confidence head and others.

    Releases of equal shapes have different digests. Experts are not read.

    Raises:
        ValueError: a file is missing or damaged.
        OSError: reading failed.
    """
    files = TensorFiles(folder)
    digest = hashlib.sha256()
    for name in sorted(carried_names(files.names())):
        if files.size(name) <= SMALL:
            digest.update(f"{name} {files.dtype(name)} {files.shape(name)}\n".encode())
            digest.update(files.read(name).flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Carrying:
    """A source and a target of an export that take some tensors from a folder as they are."""

    folder: FolderSource
    names: frozenset[str]

    @classmethod
    def of(cls, folder: FolderSource) -> "Carrying":
        """The tensors of a folder's DSpark stages; none if it has no such stages, or trained ones in full precision."""
        names = carried_names({name for name, _ in folder.shapes()})
        return cls(folder, names if names and folder.kind(MARK) in QUANTIZED else frozenset())

    @classmethod
    def rest(cls, folder: FolderSource, names: Collection[str]) -> "Carrying":
        """All tensors of a folder but those of some names, if these are DSpark stages; else `of` the folder."""
        if MARK not in names:
            return cls.of(folder)
        return cls(folder, frozenset(name for name, _ in folder.shapes()) - frozenset(names))

    def target(self, target: ExportTarget) -> "CarryingTarget":
        """The target, but for those tensors."""
        return CarryingTarget(self, target)

    def source(self, source: Source) -> "CarryingSource":
        """The tensors of another source, and then those of the folder."""
        return CarryingSource(self, source)


@dataclass(frozen=True)
class CarryingTarget:
    """An export target that leaves carried tensors in the kind that they have."""

    carrying: Carrying
    other: ExportTarget

    def kind(self, released: str) -> str:
        """The kind of the tensor with that released name; no format has NVFP4, so that is decoded like others."""
        kind = self.carrying.folder.kind(released) if released in self.carrying.names else NVFP4
        return self.other.kind(released) if kind == NVFP4 else kind

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """config.json of the result, from the source's."""
        return self.other.config(source)


@dataclass(frozen=True)
class CarryingSource:
    """A source with the carried tensors after its own."""

    carrying: Carrying
    other: Source

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and decoded shape of every tensor."""
        yield from self.other.shapes()
        yield from (each for each in self.carrying.folder.shapes() if each[0] in self.carrying.names)

    def stored(self, name: str) -> Stored:
        """The tensor in the encoding of its source."""
        chosen = self.carrying.folder if name in self.carrying.names else self.other
        return chosen.stored(name)
