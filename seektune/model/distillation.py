"""Distillation: the divergence of the model's next-token distributions from a teacher's, over the whole vocabulary.

The teacher's hidden states are a column of the batch, so its logits exist only where the loss is computed, a chunk of
tokens at a time. Shapes: B rows, T tokens, N taught tokens of this device, D width, E the teacher's width,
V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from seektune.kernels import linear_cross_entropy, linear_divergence
from seektune.model.head import Taught
from seektune.model.objective import Objective, ObjectiveLoss
from seektune.sequence import IGNORE_INDEX, TEACHER, TEACHER_NUMBER, WEIGHTS, Batch, SequenceLayout

DIVERGENCE = "divergence"
TOKEN_LOSS = "cross_entropy"
ENTROPY = "entropy"
"""Names of parts."""
OF_TEACHER = f"{DIVERGENCE}_"
"""Before the label of a teacher in the name of the divergence from it, which several teachers have."""


@dataclass(frozen=True, eq=False)
class Distillation(Objective):
    """`a T^2 KL(p || q) + (1 - a) CE` per taught token: `p` the teacher's distribution at temperature T, `q` ours.

    `reverse` is `KL(q || p)`. Both parts have the weights and the divisor of cross-entropy.
    """

    head_VE: Tensor | None
    """The teacher's head; None if it is that of the model itself, as where the teacher is the model without adapters
    or on pipeline stages without a head."""
    share: float = 1.0
    """`a` above."""
    temperature: float = 1.0
    reverse: bool = False
    part_names: ClassVar[tuple[str, ...]] = (DIVERGENCE, TOKEN_LOSS)  # type: ignore[misc]

    def count(self, batch: Batch) -> float:
        """The sum of the weights."""
        return batch.weight()

    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """As the class says; the batch needs the column of the teacher's hidden states."""
        tokens = taught.tokens(hidden_BTD, layout, steps=1)
        weights_N = tokens.columns.get(WEIGHTS)
        teacher_NE = tokens.columns[TEACHER]
        head_VE = weight_VD if self.head_VE is None else self.head_VE
        total = linear_divergence(
            tokens.hidden_ND, weight_VD, teacher_NE, head_VE, weights_N, self.temperature, self.reverse
        )
        divergence = total / divisor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.share < 1):
            cross_entropy = linear_cross_entropy(tokens.hidden_ND, weight_VD, tokens.targets_N, weights_N) / divisor
        loss = self.share * divergence + (1 - self.share) * cross_entropy
        return ObjectiveLoss(loss, {DIVERGENCE: divergence.detach(), TOKEN_LOSS: cross_entropy.detach()})


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """What the loss reads of a teacher."""

    label: str
    """Its name in the metrics."""
    width: int
    """Of its hidden states, the first of those in the column."""
    head_VE: Tensor | None
    """As `Distillation.head_VE`."""


@dataclass(frozen=True, eq=False)
class OnPolicyDistillation(Objective):
    """`sum_t w_t KL(q || p_k) / sum_t w_t` over tokens that the model has sampled; `k` is the teacher of token t."""

    teachers: tuple[TeacherHead, ...]

    @property
    def part_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As `Objective`."""
        several = self.teachers if len(self.teachers) > 1 else ()
        return DIVERGENCE, ENTROPY, *(name(each) for each in several for name in (_divergence_of, _share_of))

    def count(self, batch: Batch) -> float:
        """The sum of the weights."""
        return batch.weight()

    def means(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The divergence from each teacher is the mean over its own tokens; a teacher without tokens has none."""
        found = dict(totals)
        for each in self.teachers if len(self.teachers) > 1 else ():
            share = found.pop(_share_of(each))
            own = found.pop(_divergence_of(each))
            found |= {_divergence_of(each): own / share} if share > 0 else {}
        return found

    def of_hidden(
        self, hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, divisor: Tensor | float, weight_VD: Tensor
    ) -> ObjectiveLoss:
        """As the class says, by `Distillation` from each teacher on its own tokens.

        `entropy` is the mean of `-log q` of the tokens, which estimates that of the distributions they were sampled
        from.
        """
        found = [
            self._from(number, hidden_BTD, layout, taught, divisor, weight_VD) for number in range(len(self.teachers))
        ]
        parts = {
            name: torch.stack([each.parts[name] for each in found if name in each.parts]).sum()
            for name in self.part_names
        }
        return ObjectiveLoss(torch.stack([each.loss for each in found]).sum(), parts)

    def _from(
        self,
        number: int,
        hidden_BTD: Tensor,
        layout: SequenceLayout,
        taught: Taught,
        divisor: Tensor | float,
        weight_VD: Tensor,
    ) -> ObjectiveLoss:
        """The loss of one teacher's tokens."""
        teacher = self.teachers[number]
        labels_BT = torch.where(taught.columns[TEACHER_NUMBER] == number, taught.labels_BT, IGNORE_INDEX)
        columns = {**taught.columns, TEACHER: taught.columns[TEACHER][..., : teacher.width]}
        theirs = replace(taught, labels_BT=labels_BT, columns=columns)
        found = Distillation(teacher.head_VE, reverse=True).of_hidden(hidden_BTD, layout, theirs, divisor, weight_VD)
        divergence = found.parts[DIVERGENCE]
        share = theirs.tokens(hidden_BTD[..., :1].detach(), layout, steps=1).columns[WEIGHTS].sum() / divisor
        parts = {DIVERGENCE: divergence, ENTROPY: found.parts[TOKEN_LOSS]}
        return ObjectiveLoss(found.loss, parts | {_divergence_of(teacher): divergence, _share_of(teacher): share})


def _divergence_of(teacher: TeacherHead) -> str:
    return OF_TEACHER + teacher.label


def _share_of(teacher: TeacherHead) -> str:
    return f"share_{teacher.label}"
