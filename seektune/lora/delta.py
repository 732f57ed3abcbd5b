"""The low-rank change of a weight, as it is trained and stored.

Shapes: R rank, I inputs, O outputs, E experts.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seektune.kernels import lora_delta


@dataclass(frozen=True)
class LoraDelta:
    """The low-rank change `scaling * B A` of one weight, or of each expert's weight."""

    a: Tensor
    """`[R, I]`, or `[E, R, I]`."""
    b: Tensor
    """`[O, R]`, or `[E, O, R]`."""
    scaling: float
    magnitude: Tensor | None = None
    """DoRA: the norm of each row of the changed weight, `[O]`."""
    is_table: bool = False
    """The weight is an embedding table `[I, O]`, the transpose of a linear layer's."""

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-2]

    @property
    def is_nothing(self) -> bool:
        """Whether B is all zero, as before training or where no gradient arrived: the weight stays as it is."""
        return self.magnitude is None and not bool(self.b.any())

    def of_experts(self, here: "ExpertRange") -> "LoraDelta":
        """The change of some of the experts; that of another weight unchanged.

        Raises:
            ValueError: it has another number of experts in all.
        """
        if self.a.dim() < 3:
            return self
        if len(self.a) != here.total:
            raise ValueError(f"the adapter changes {len(self.a)} experts, the model has {here.total}")
        end = here.first + here.count
        return replace(self, a=self.a[here.first : end], b=self.b[here.first : end])

    def applied(self, weight: Tensor, expert: int | None, share: float = 1.0) -> Tensor:
        """The changed weight in fp32, from the dequantized one; `share` scales the change."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        delta = lora_delta(a.float(), b.float(), share * self.scaling)
        changed = weight.float() + (delta.T if self.is_table else delta)
        return changed if self.magnitude is None else with_row_lengths(changed, self.magnitude.float())


@dataclass(frozen=True)
class ExpertRange:
    """The routed experts of a process that holds some of them."""

    first: int
    count: int
    total: int
    """Experts of the model."""


def with_row_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """A matrix `[O, I]` whose rows keep their directions and get these lengths `[O]`, as DoRA changes a weight."""
    return (lengths / above_zero(weight.norm(dim=1)))[:, None] * weight


def above_zero(lengths: Tensor) -> Tensor:
    """Row norms clamped to be positive, so that rows of zeros stay zeros when divided."""
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def check_weight(changes: Iterable[LoraDelta], weight: float, folder: Path) -> None:
    """Check the weight of an adapter.

    Raises:
        ValueError: it is not finite, or not 1 for DoRA, whose norms belong to the whole change.
    """
    if not math.isfinite(weight):
        raise ValueError(f"an adapter's weight must be a finite number, not {weight}")
    if weight != 1.0 and any(change.magnitude is not None for change in changes):
        raise ValueError(f"{folder} is a DoRA adapter, which only supports weight 1")
