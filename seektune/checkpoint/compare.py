"""Compare two checkpoint folders tensor by tensor, by bytes and by value."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.names import Shape
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored, bands_of

EQUAL = ("same bytes", "same values", "within tolerance")
STATUSES = (*EQUAL, "differs", "other shape", "only in A", "only in B")


@dataclass(frozen=True)
class Comparison:
    """The result for one tensor."""

    name: str
    status: str
    """One of `STATUSES`."""
    a: str
    b: str
    """Kind and shape on each side; empty where the tensor is missing."""
    bytes: int
    """Size on disk with scales: in A, or in B if A does not have the tensor."""
    difference: float | None = None
    """Largest absolute difference of the decoded values; infinite if only one is NaN; None if not compared."""

    @property
    def equal(self) -> bool:
        """Whether this tensor passes."""
        return self.status in EQUAL


def compare(
    a: Path, b: Path, tolerance: float = 0.0, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Comparison]:
    """Compare every tensor of two folders in any formats; values are decoded where the bytes or dtypes differ.

    Args:
        a: a checkpoint folder.
        b: another.
        tolerance: largest absolute difference of decoded values that passes.
        progress: called with the bytes compared so far and in all.

    Raises:
        ValueError: a folder or file is unreadable.
    """
    left = FolderSource(a)
    right = FolderSource(b)
    shapes_a = dict(left.shapes())
    shapes_b = dict(right.shapes())
    names = [*shapes_a, *(name for name in shapes_b if name not in shapes_a)]
    sizes = [(left if name in shapes_a else right).size(name) for name in names]
    done = 0
    total = sum(sizes)
    for name, size in zip(names, sizes, strict=True):
        shape_a = shapes_a.get(name)
        shape_b = shapes_b.get(name)
        status, difference = _unpaired(shape_a, shape_b) or _compare_pair(
            left.stored(name), right.stored(name), tolerance
        )
        yield Comparison(
            name, status, _description(left, name, shape_a), _description(right, name, shape_b), size, difference
        )
        done += size
        progress(done, total)


def _unpaired(shape_a: Shape | None, shape_b: Shape | None) -> tuple[str, None] | None:
    """The result if there is nothing to compare; None otherwise."""
    if shape_a is None:
        return "only in B", None
    if shape_b is None:
        return "only in A", None
    return ("other shape", None) if shape_a != shape_b else None


def _compare_pair(a: Stored, b: Stored, tolerance: float) -> tuple[str, float]:
    if a.kind == b.kind and _same_bytes(a.weight, b.weight) and _same_bytes(a.scale, b.scale):
        return "same bytes", 0.0
    largest = 0.0
    for band in bands_of(a.shape):
        x = a.part(band).values()
        y = b.part(band).values()
        if not same_values(x, y):
            largest = max(largest, largest_difference(x, y))
    if largest == 0:
        return "same values", 0.0
    return "within tolerance" if largest <= tolerance < math.inf else "differs", largest


def _same_bytes(x: Tensor | None, y: Tensor | None) -> bool:
    if x is None or y is None:
        return x is y
    # compared as bytes, because NaN != NaN and 0 == -0
    return torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))


def _description(source: FolderSource, name: str, shape: Shape | None) -> str:
    return "" if shape is None else f"{source.kind(name)} {list(shape)}"


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, in any dtypes; NaN equals NaN."""
    x, y = _to_common_dtype(a, b)
    return torch.equal(x, y) or bool(_equal_or_nan(x, y).all())


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; infinite where only one is NaN or infinite."""
    x, y = _to_common_dtype(a, b)
    difference = torch.where(_equal_or_nan(x, y), 0.0, (x.double() - y.double()).abs())
    return difference.nan_to_num(nan=math.inf, posinf=math.inf).amax().item() if difference.numel() else 0.0


def _to_common_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in a dtype that holds the values of either exactly."""
    common = torch.promote_types(a.dtype, b.dtype)
    if a.is_floating_point() != b.is_floating_point():
        common = torch.float64
    return a.to(common), b.to(common)


def _equal_or_nan(x: Tensor, y: Tensor) -> Tensor:
    return (x == y) | (x.isnan() & y.isnan())
