"""Distillation: the divergence of the model's next-token distributions from a teacher's, over the whole vocabulary.

The teacher's hidden states are a column of the batch, so its logits exist only where the loss is computed, a chunk of
tokens at a time. Shapes: B rows, T tokens, N taught tokens of this device, D width, E the teacher's width,
V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seektune.kernels import linear_cross_entropy, linear_divergence
from seektune.model.head import Taught
from seektune.model.objective import Objective, ObjectiveLoss
from seektune.sequence import TEACHER, WEIGHTS, Batch, SequenceLayout

DIVERGENCE = "divergence"
TOKEN_LOSS = "cross_entropy"
"""Names of parts."""


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
