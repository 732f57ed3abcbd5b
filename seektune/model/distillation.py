"""Distillation: the divergence of the model's next-token distributions from a teacher's, over the whole vocabulary.

The teacher's hidden states are a column of the batch, so its logits exist only where the loss is computed, a chunk of
tokens at a time; or columns have the teacher's likeliest tokens, which were written to files before. Shapes: B rows,
T tokens, N taught tokens of this device, D width, E the teacher's width, V vocabulary, K kept tokens.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from seektune.kernels import linear_cross_entropy, linear_divergence, top_k_divergence
from seektune.model.head import Taught, TaughtTokens, token_logits
from seektune.model.objective import Objective, ObjectiveLoss
from seektune.sequence import (
    IGNORE_INDEX,
    TEACHER,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    TEACHER_NUMBER,
    WEIGHTS,
    Batch,
    SequenceLayout,
)

DIVERGENCE = "divergence"
TOKEN_LOSS = "cross_entropy"
ENTROPY = "entropy"
"""Names of parts."""
CHUNK = 512
"""Tokens whose logits exist at a time in `top_tokens`."""
OF_TEACHER = f"{DIVERGENCE}_"
"""Before the label of a teacher in the name of the divergence from it, which several teachers have."""


@dataclass(frozen=True, eq=False)
class OfflineDistillation(Objective):
    """`a T^2 KL(p || q) + (1 - a) CE` per taught token: `p` the teacher's distribution at temperature T, `q` ours.

    `reverse` is `KL(q || p)`. Both parts have the weights and the divisor of cross-entropy. Subclasses say how much is
    known of `p`.
    """

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
        """As the class says."""
        tokens = taught.tokens(hidden_BTD, layout, steps=1)
        weights_N = tokens.columns.get(WEIGHTS)
        divergence = self.divergence_of(tokens, weights_N, weight_VD) / divisor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.share < 1):
            cross_entropy = linear_cross_entropy(tokens.hidden_ND, weight_VD, tokens.targets_N, weights_N) / divisor
        loss = self.share * divergence + (1 - self.share) * cross_entropy
        return ObjectiveLoss(loss, {DIVERGENCE: divergence.detach(), TOKEN_LOSS: cross_entropy.detach()})

    @abstractmethod
    def divergence_of(self, tokens: TaughtTokens, weights_N: Tensor | None, weight_VD: Tensor) -> Tensor:
        """The sum of the tokens' divergences, with T^2 and the weights."""


@dataclass(frozen=True, eq=False)
class Distillation(OfflineDistillation):
    """Over the whole vocabulary; the batch needs the column of the teacher's hidden states."""

    head_VE: Tensor | None = None
    """The teacher's head; None if it is that of the model itself, as where the teacher is the model without adapters
    or on pipeline stages without a head."""

    def divergence_of(self, tokens: TaughtTokens, weights_N: Tensor | None, weight_VD: Tensor) -> Tensor:
        """As `OfflineDistillation`."""
        teacher_NE = tokens.columns[TEACHER]
        head_VE = weight_VD if self.head_VE is None else self.head_VE
        return linear_divergence(
            tokens.hidden_ND, weight_VD, teacher_NE, head_VE, weights_N, self.temperature, self.reverse
        )


class TopKDistillation(OfflineDistillation):
    """Over the teacher's likeliest tokens, and all others as one event; the batch needs the columns of both."""

    def divergence_of(self, tokens: TaughtTokens, weights_N: Tensor | None, weight_VD: Tensor) -> Tensor:
        """As `OfflineDistillation`."""
        teacher = tokens.columns[TEACHER_IDS], tokens.columns[TEACHER_LOGPROBS]
        return top_k_divergence(tokens.hidden_ND, weight_VD, *teacher, weights_N, self.temperature, self.reverse)


def top_tokens(
    hidden_BTD: Tensor, layout: SequenceLayout, labels_BT: Tensor, weight_VD: Tensor, count: int, temperature: float
) -> Tensor:
    """What the head predicts in place of each taught token, at the positions that predict, fp32 `[B, T, 2 K + 1]`: the
    ids of the K likeliest tokens, their log-probabilities at this temperature, and that of all others together, which
    is -inf if there are none. 0 where nothing is taught.

    fp32 holds ids below 2^24 exactly, so that processes can exchange one tensor.
    """
    targets_BT = layout.targets(labels_BT, steps=1)
    hidden_ND, _ = layout.taught(hidden_BTD, targets_BT)
    found = hidden_BTD.new_zeros(*targets_BT.shape, 2 * count + 1, dtype=torch.float32)
    parts = [_likeliest(part, weight_VD, count, temperature) for part in hidden_ND.split(CHUNK)]
    found[targets_BT != IGNORE_INDEX] = torch.cat(parts).float()
    return found


def _likeliest(hidden_ND: Tensor, weight_VD: Tensor, count: int, temperature: float) -> Tensor:
    logprobs_NV = torch.log_softmax(token_logits(hidden_ND, weight_VD) / temperature, dim=-1)
    kept_NK, ids_NK = logprobs_NV.topk(count, dim=-1)
    others_N1 = logprobs_NV.scatter_(1, ids_NK, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([ids_NK, kept_NK, others_N1], dim=-1)


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
        found = Distillation(reverse=True, head_VE=teacher.head_VE).of_hidden(
            hidden_BTD, layout, theirs, divisor, weight_VD
        )
        divergence = found.parts[DIVERGENCE]
        share = theirs.tokens(hidden_BTD[..., :1].detach(), layout, steps=1).columns[WEIGHTS].sum() / divisor
        parts = {DIVERGENCE: divergence, ENTROPY: found.parts[TOKEN_LOSS]}
        return ObjectiveLoss(found.loss, parts | {_divergence_of(teacher): divergence, _share_of(teacher): share})


def _divergence_of(teacher: TeacherHead) -> str:
    return OF_TEACHER + teacher.label


def _share_of(teacher: TeacherHead) -> str:
    return f"share_{teacher.label}"
