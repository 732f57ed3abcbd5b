"""Context parallelism: the tokens of a row are sharded over processes in contiguous slices.

Shapes: B rows, T tokens of a row, L tokens of a slice, C channels, E entries of the row, F entries made here,
R processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd, all_to_all_single_autograd

from seektune.model.transformer import TransformerPart
from seektune.parallel.mesh import Mesh
from seektune.sequence import SequenceLayout, Windows


@dataclass(frozen=True)
class Slice:
    """This process's share of each row: tokens `[rank * L, (rank + 1) * L)`."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def mine(self, x_BT: Tensor) -> Tensor:
        """The slice of a whole row's values."""
        assert x_BT.shape[1] % self.size == 0, "rows are padded to a multiple of cp_size"
        return x_BT.chunk(self.size, dim=1)[self.rank]

    def preceded(self, x_BLC: Tensor, count: int) -> Tensor:
        """The slice after the `count` tokens before it, `[B, count + L, C]`; zeros before the row's first token.

        What a later slice needs of this one is a run at its end, `count - (distance - 1) * L` tokens long at most L.
        """
        length = x_BLC.shape[1]
        tail = [min(max(count - (distance - 1) * length, 0), length) for distance in range(self.size + 1)]
        leaving = [tail[other - self.rank] if other > self.rank else 0 for other in range(self.size)]
        arriving = [tail[self.rank - other] if other < self.rank else 0 for other in range(self.size)]
        x_LBC = x_BLC.transpose(0, 1)
        sent = torch.cat([x_LBC[length - many :] for many in leaving])
        before = all_to_all_single_autograd(sent.contiguous(), arriving, leaving, self.group).transpose(0, 1)
        before = F.pad(before, (0, 0, count - before.shape[1], 0))
        return torch.cat([before, x_BLC], dim=1)

    def gather(self, x_BFC: Tensor) -> Tensor:
        """All-gather over the slices, `[B, R * F, C]`; gradients are reduce-scattered in backward."""
        return all_gather_single_autograd(x_BFC.contiguous(), 1, self.group)


@dataclass(frozen=True)
class SlicedWindows(Windows):
    """Windows whose last token is in this slice; queries here see the entries of the whole row."""

    slice: Slice
    slot_BE: Tensor
    """Index of each entry of the row in the gathered entries of all slices."""

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        return self.slice.preceded(x_BTC, count)

    def of_row(self, entries_BEC: Tensor) -> Tensor:
        """All entries of the row `[B, E, C]` from those made here `[B, F, C]`."""
        rows = torch.arange(entries_BEC.shape[0], device=entries_BEC.device)[:, None]
        return self.slice.gather(entries_BEC)[rows, self.slot_BE]

    @property
    def most(self) -> int:
        """Entries of the whole row."""
        return self.slot_BE.shape[1]


@dataclass(frozen=True)
class SlicedLayout(SequenceLayout):
    """Layout of the tokens of one slice, which knows the whole row."""

    slice: Slice
    whole: SequenceLayout

    @classmethod
    def cut(cls, whole: SequenceLayout, slice: Slice) -> "SlicedLayout":
        """The slice of a row."""
        return cls(slice.mine(whole.positions), slice.mine(whole.documents), slice, whole)

    def mine(self, x_BT: Tensor) -> Tensor:
        """The values of the tokens here."""
        return self.slice.mine(x_BT)

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        return self.slice.preceded(x_BTC, count)

    def total(self, x: Tensor) -> Tensor:
        """The sum over the slices, with its gradient."""
        return self.slice.gather(x[None, None]).sum(dim=(0, 1))

    @property
    def shares(self) -> int:
        """Slices of a row."""
        return self.slice.size

    def numbered(self) -> tuple[Tensor, int]:
        """Numbers of the whole rows' documents."""
        numbers_BT, count = self.whole.numbered()
        return self.slice.mine(numbers_BT), count

    def ahead(self, x_BT: Tensor, steps: int, beyond: int) -> Tensor:
        """The values ahead of the tokens here, of which the last are in the next slice."""
        return self.slice.mine(self.whole.ahead(x_BT, steps, beyond))

    def taught(self, x_BLD: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor]:
        """As for the whole row."""
        return self.whole.taught(x_BLD, targets_BL)

    def followed(self) -> "SlicedLayout":
        """The tokens here that a token of their own document follows."""
        return SlicedLayout.cut(self.whole.followed(), self.slice)

    def windows(self, ratio: int) -> SlicedWindows:
        """The windows that end here, and the row's entries that each token here sees.

        An entry belongs to the slice with the last token of its window; `ceil(L / ratio)` is the most that can be.
        """
        whole = self.whole.windows(ratio)
        part = self.slice
        entries = whole.last_BE.shape[1]
        length = self.positions.shape[1]
        made = min(entries, -(-length // ratio))
        # complete windows of the row up to each token, and before each slice
        ends_BT = whole.first_BT + whole.count_BT
        before_BR = F.pad(ends_BT[:, length - 1 :: length], (1, 0))
        index_BF = before_BR[:, part.rank, None] + torch.arange(made, device=ends_BT.device)
        exists_BF = index_BF < before_BR[:, part.rank + 1, None]
        safe_BF = index_BF.clamp(max=max(entries - 1, 0))
        last = whole.last_BE.gather(1, safe_BF) - part.rank * length
        position = whole.position_BE.gather(1, safe_BF)
        number_E = torch.arange(entries, device=ends_BT.device)
        owner_BE = (before_BR[:, 1:-1, None] <= number_E).sum(dim=1)
        slot_BE = owner_BE * made + number_E - before_BR.gather(1, owner_BE)
        return SlicedWindows(
            ratio=ratio,
            last_BE=torch.where(exists_BF, last, length - 1),
            position_BE=torch.where(exists_BF, position, 0),
            first_BT=part.mine(whole.first_BT),
            count_BT=part.mine(whole.count_BT),
            slice=part,
            slot_BE=slot_BE.clamp(0, max(part.size * made - 1, 0)),
        )


def apply_context_parallel(model: TransformerPart, mesh: Mesh) -> None:
    """Set the model's `sequence` to sliced layouts."""
    if mesh.axes is not None and mesh.dims.cp_size > 1:
        part = Slice(mesh.axes.context, mesh.coords.cp, mesh.dims.cp_size)
        model.sequence = partial(_sliced, model.sequence, part)


def _sliced(layout: Callable[[Tensor], SequenceLayout], part: Slice, documents_BT: Tensor) -> SlicedLayout:
    return SlicedLayout.cut(layout(documents_BT), part)
