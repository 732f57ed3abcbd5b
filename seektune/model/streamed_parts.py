"""The stored tensors of a streamed weight: views of the checkpoint's files, or copies on the device that computes."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = Sequence[tuple[Tensor, Tensor | None]]
"""Weight and scales of a linear layer, or of each expert, in the dtypes of the file."""


class StreamedParts(Sequence[tuple[Tensor, Tensor | None]]):
    """Weight and scales of a linear layer, or of each expert, as views of a file; while their block runs, as copies."""

    def __init__(self, files: Parts, device: torch.device):
        """`device` is the one that computes."""
        self.files = files
        self.device = device
        self.copies: list[Tensor] | None = None
        """All tensors of `files` on `device`, in the order of `tensors`."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        pairs = self.files
        if self.copies is not None:
            copies = iter(self.copies)
            pairs = [(next(copies), None if scale is None else next(copies)) for _, scale in self.files]
        return pairs[index]

    def tensors(self) -> list[Tensor]:
        """All weights and scales."""
        if self.copies is not None:
            return self.copies
        return [x for pair in self.files for x in pair if x is not None]

    def use(self, copies: Iterator[Tensor]) -> None:
        """Take as many copies as there are tensors."""
        self.copies = [next(copies) for _ in self.tensors()]
