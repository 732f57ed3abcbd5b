"""Two checkpoint folders, tensor by tensor: what is the same, in bytes or in value, and what is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from seektune.checkpoint.source import FolderSource


@dataclass(frozen=True)
class Comparison:
    """One tensor in both folders."""

    name: str
    status: str
    """`same bytes`, `same values`, `within tolerance`, `differs`, `other shape`, `only in A` or `only in B`."""
    a: str
    b: str
    """Kind and shape on each side."""
    difference: float | None = None
    """Largest absolute difference of the decoded values."""

    @property
    def equal(self) -> bool:
        """Whether this tensor passes."""
        return self.status in ("same bytes", "same values", "within tolerance")


def compare(a: Path, b: Path, tolerance: float = 0.0) -> Iterator[Comparison]:
    """Compare every tensor of two folders in any formats; values are decoded where the bytes or dtypes differ.

    Args:
        a: a checkpoint folder.
        b: another.
        tolerance: largest absolute difference of decoded values that passes.

    Raises:
        ValueError: a folder or file is unreadable.
    """
    left, right = FolderSource(a), FolderSource(b)
    shapes_a, shapes_b = dict(left.shapes()), dict(right.shapes())
    for name in [*shapes_a, *(name for name in shapes_b if name not in shapes_a)]:
        if name not in shapes_b:
            yield Comparison(name, "only in A", _describe(left, name, shapes_a[name]), "")
        elif name not in shapes_a:
            yield Comparison(name, "only in B", "", _describe(right, name, shapes_b[name]))
        else:
            yield _both(name, left, right, shapes_a[name], shapes_b[name], tolerance)


def _both(
    name: str, a: FolderSource, b: FolderSource, shape_a: tuple[int, ...], shape_b: tuple[int, ...], tolerance: float
) -> Comparison:
    sides = _describe(a, name, shape_a), _describe(b, name, shape_b)
    if shape_a != shape_b:
        return Comparison(name, "other shape", *sides)
    if a.kind(name) == b.kind(name) and _same_bytes(a, b, name):
        return Comparison(name, "same bytes", *sides, difference=0.0)
    values_a, values_b = a.values(name).double(), b.values(name).double()
    if torch.equal(values_a, values_b):
        return Comparison(name, "same values", *sides, difference=0.0)
    difference = float((values_a - values_b).abs().max())
    return Comparison(name, "within tolerance" if difference <= tolerance else "differs", *sides, difference=difference)


def _same_bytes(a: FolderSource, b: FolderSource, name: str) -> bool:
    pairs = zip(a.stored(name).values(), b.stored(name).values(), strict=True)
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs)


def _describe(source: FolderSource, name: str, shape: tuple[int, ...]) -> str:
    return f"{source.kind(name)} {list(shape)}"
