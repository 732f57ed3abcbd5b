"""The piece of a named tensor that one rank holds, in a form that torch.distributed.checkpoint saves and reloads.

A mapping from names to `Tensor | Shard` describes what a rank holds: a tensor is the whole, absent names belong to
other ranks, and a piece may be empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from seektune.checkpoint.names import Shape

FILE_BYTES = 2**30
"""Where a further file of a run's checkpoint begins; a piece larger than that is cut, as the engine holds one file in
memory while it writes."""

Box = tuple[slice, ...]
"""A range of every dim of a whole tensor."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A rectangular piece of a whole tensor: `[offset, offset + size)` in every dim."""

    tensor: Tensor
    """The piece: a plain tensor of this rank, written to when loading."""
    shape: Shape
    """Of the whole."""
    offsets: Shape
    """Where the piece begins in the whole."""

    def __post_init__(self) -> None:
        assert self.tensor.dim() == len(self.shape) == len(self.offsets), f"{self.tensor.shape} of {self.shape}"
        ends = [begin + size for begin, size in zip(self.offsets, self.tensor.shape, strict=True)]
        assert all(begin >= 0 for begin in self.offsets), f"a piece begins at {self.offsets}"
        assert all(end <= size for end, size in zip(ends, self.shape, strict=True)), (
            f"a piece of {self.shape} ends at {ends}"
        )

    @property
    def box(self) -> Box:
        """Where it lies in the whole."""
        return box_of(self.offsets, self.tensor.shape)

    def whole(self) -> Tensor:
        """The tensor, of which nothing is elsewhere."""
        assert tuple(self.tensor.shape) == self.shape, f"{list(self.tensor.shape)} is a part of {list(self.shape)}"
        return self.tensor

    def expert(self, number: int) -> "Shard | None":
        """What is here of one slice of the first dim, as a piece of that slice; None if nothing is."""
        begin, *others = self.offsets
        here = 0 <= number - begin < self.tensor.shape[0]
        return Shard(self.tensor[number - begin], self.shape[1:], tuple(others)) if here else None

    def size(self) -> torch.Size:
        """Of the whole, as the engine asks for it."""
        return torch.Size(self.shape)

    def parts(self) -> list["Shard"]:
        """The shard cut along its first dim into pieces of at most `FILE_BYTES` where possible; none if it is empty."""
        if not self.shape or 0 in self.shape:
            return [self]
        if 0 in self.tensor.shape:
            return []
        rows = max(FILE_BYTES // (prod(self.tensor.shape[1:]) * self.tensor.itemsize), 1)
        begin, *others = self.offsets
        return [
            Shard(part, self.shape, (begin + number * rows, *others))
            for number, part in enumerate(self.tensor.split(rows))
        ]

    def __create_write_items__(self, fqn: str, object: object) -> list[WriteItem]:
        """What to save, for the engine."""
        size = self.size()
        return [
            WriteItem(
                MetadataIndex(fqn, part.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(part._chunk(), TensorProperties.create_from_tensor(part.tensor), size),
            )
            for part in self.parts()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """What to load, for the engine."""
        return [part._chunk() for part in self.parts()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The part that the engine saves or loads."""
        return next(part.tensor for part in self.parts() if part.offsets == index.offset)

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offsets), self.tensor.shape)


def as_shard(held: Tensor | Shard) -> Shard:
    """A whole tensor as the piece that is everything."""
    return held if isinstance(held, Shard) else Shard(held, tuple(held.shape), (0,) * held.dim())


def box_of(offsets: Sequence[int], sizes: Sequence[int]) -> Box:
    """The box that begins there and is so large."""
    return tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
