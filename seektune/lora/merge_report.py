"""What the rounding of a merge keeps of an adapter's change, tensor by tensor.

Rounding a weight W + D to few bits gives mostly W again where D is small: the *share kept* is the part of D that the
stored weight S has moved along it, `<S - W, D> / <D, D>`, and the *error* is `|S - (W + D)| / |D|`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.stored import Stored, bands_of
from seektune.io.json_file import write_json

REPORT = "merge.json"
"""Name in the merged checkpoint's folder."""


@dataclass(frozen=True)
class KeptChange:
    """What became of one tensor's change."""

    name: str
    kind: str
    """How it is stored now."""
    change: float
    """Norm of the change over the norm of the weight."""
    dot: float
    """`<S - W, D>`."""
    square: float
    """`<D, D>`."""
    miss: float
    """`|S - (W + D)|^2`."""

    @property
    def share(self) -> float:
        """The share kept; 1 where there was no change."""
        return self.dot / self.square if self.square else 1.0

    @property
    def error(self) -> float:
        """The error against the change."""
        return (self.miss / self.square) ** 0.5 if self.square else 0.0


@torch.no_grad()
def measure(name: str, before: Tensor, merged: Tensor, stored: Stored) -> KeptChange:
    """Compare what is stored with what was meant; all sums in fp64, a band of rows at a time."""
    size = square = dot = miss = 0.0
    for band in bands_of(tuple(before.shape)):
        weight = before[band].double()
        delta = merged[band].double() - weight
        moved = stored.part(band).values().double() - weight
        size += float(weight.square().sum())
        square += float(delta.square().sum())
        dot += float((moved * delta).sum())
        miss += float((moved - delta).square().sum())
    change = (square / size) ** 0.5 if size else 0.0
    return KeptChange(name, stored.kind, change, dot, square, miss)


def share_kept(kept: Sequence[KeptChange]) -> float:
    """The share over all tensors together."""
    square = sum(each.square for each in kept)
    return sum(each.dot for each in kept) / square if square else 1.0


def write_report(folder: Path, kept: Sequence[KeptChange], to: str, weight: float) -> None:
    """Write merge.json into a folder.

    Raises:
        OSError: it could not be written.
    """
    tensors = {each.name: {"share": each.share, "error": each.error, **asdict(each)} for each in kept}
    report = {"to": to, "weight": weight, "share": share_kept(kept), "tensors": tensors}
    write_json(folder / REPORT, report)
