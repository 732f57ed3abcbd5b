"""One rank's shard of a named tensor.

A mapping from names to `Tensor | Shard` describes what a rank holds: a `Tensor` is whole, missing names belong to
other ranks, and a shard may be empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from seektune.checkpoint.names import Shape

FILE_BYTES = 2**30
"""Size limit of a file of a run's checkpoint; larger shards are split, as each file is held in memory while written."""

Box = tuple[slice, ...]
"""A range in every dim of a whole tensor."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A rectangular part of a whole tensor: `[offset, offset + size)` in every dim."""

    tensor: Tensor
    """The local values; loading writes to this tensor."""
    shape: Shape
    """Shape of the whole tensor."""
    offsets: Shape
    """Where the shard begins in the whole."""

    def __post_init__(self) -> None:
        assert self.tensor.dim() == len(self.shape) == len(self.offsets), f"{self.tensor.shape} of {self.shape}"
        ends = [begin + size for begin, size in zip(self.offsets, self.tensor.shape, strict=True)]
        assert all(begin >= 0 for begin in self.offsets), f"a shard begins at {self.offsets}"
        assert all(end <= size for end, size in zip(ends, self.shape, strict=True)), (
            f"a shard of {self.shape} ends at {ends}"
        )

    @property
    def box(self) -> Box:
        """Its range in the whole tensor."""
        return box_of(self.offsets, self.tensor.shape)

    def whole(self) -> Tensor:
        """The tensor, which must not be split over ranks."""
        assert tuple(self.tensor.shape) == self.shape, f"{list(self.tensor.shape)} is a part of {list(self.shape)}"
        return self.tensor

    def expert(self, number: int) -> "Shard | None":
        """This rank's shard of one slice of the first dim; None if it does not hold the slice."""
        begin, *others = self.offsets
        here = 0 <= number - begin < self.tensor.shape[0]
        return Shard(self.tensor[number - begin], self.shape[1:], tuple(others)) if here else None

    def parts(self) -> list["Shard"]:
        """The shard split along its first dim into parts of at most `FILE_BYTES` if possible; empty if it is empty."""
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


def as_shard(tensor: Tensor | Shard) -> Shard:
    """A whole tensor as a shard; a shard unchanged."""
    return tensor if isinstance(tensor, Shard) else Shard(tensor, tuple(tensor.shape), (0,) * tensor.dim())


def box_of(offsets: Sequence[int], sizes: Sequence[int]) -> Box:
    """The box with these offsets and sizes."""
    return tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
