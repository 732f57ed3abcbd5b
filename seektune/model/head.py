"""The output head: logits, cross-entropies and scores from hidden states and the head's weight `[V, D]`.

Losses and scores go through chunks of tokens, so that logits of whole rows never exist.
Shapes: B rows, T tokens, D width, V vocabulary, N taught tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels import linear, linear_cross_entropy, upcast
from seektune.model.linear import Linear
from seektune.sequence import IGNORE_INDEX, SequenceLayout

CHUNK = 1024
"""Tokens whose logits exist at one time while tokens are scored."""


class Head(Linear):
    """The output head; logits and losses take its weight."""

    def values(self) -> Tensor:
        """The weight `[V, D]`."""
        return self.weight


@dataclass(frozen=True)
class HiddenStates:
    """What the head reads."""

    main_BTD: Tensor
    """Row t predicts token t + 1."""
    mtp_BTD: Tensor | None
    """Row t has seen token t + 1 and predicts token t + 2; None where the MTP block did not run."""


@dataclass(frozen=True)
class Taught:
    """What a row teaches: labels of all its tokens, unshifted, -100 for none; and what the losses are divided by."""

    labels_BT: Tensor
    divisor: Tensor | int

    @classmethod
    def of(cls, labels_BT: Tensor, layout: SequenceLayout, divisor: Tensor | int | None) -> "Taught":
        """With the number of taught tokens as divisor where no other is given."""
        if divisor is None:
            divisor = (layout.targets(labels_BT, steps=1) != IGNORE_INDEX).sum().clamp(min=1)
        return cls(labels_BT, divisor)


@dataclass(frozen=True)
class Losses:
    """Cross-entropies over the divisor of `Taught`."""

    loss: Tensor
    """Of the tokens here, each predicting the next."""
    mtp: Tensor | None
    """Of the MTP block, each predicting the one after that; None where it did not run."""


@dataclass(frozen=True)
class TokenScores:
    """How likely a model finds the taught tokens of rows; each stands where it is predicted."""

    losses_BT: Tensor
    """Negative log-likelihood in nats, fp32; 0 where nothing is taught."""
    first_BT: Tensor
    """Whether it is the model's first choice, bool."""


def token_logits(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    """fp32 `[B, T, V]`."""
    return linear(upcast(hidden_BTD), upcast(weight_VD))


def token_losses(hidden: HiddenStates, layout: SequenceLayout, taught: Taught, weight_VD: Tensor) -> Losses:
    """Cross-entropies of the taught tokens of the backbone, and of the MTP block where it ran."""

    def loss(hidden_BTD: Tensor, steps: int) -> Tensor:
        hidden_ND, targets_N = layout.taught(hidden_BTD, layout.targets(taught.labels_BT, steps))
        return linear_cross_entropy(hidden_ND, weight_VD, targets_N) / taught.divisor

    return Losses(loss(hidden.main_BTD, steps=1), None if hidden.mtp_BTD is None else loss(hidden.mtp_BTD, steps=2))


@torch.no_grad()
def token_scores(hidden_BTD: Tensor, targets_BT: Tensor, weight_VD: Tensor) -> TokenScores:
    """How likely the target of each token is, -100 for none."""
    taught_BT = targets_BT != IGNORE_INDEX
    losses_BT = torch.zeros(targets_BT.shape, device=targets_BT.device)
    first_BT = torch.zeros_like(taught_BT)
    losses = []
    first = []
    chunks = zip(hidden_BTD[taught_BT].split(CHUNK), targets_BT[taught_BT].split(CHUNK), strict=True)
    for hidden_ND, targets_N in chunks:
        logits_NV = token_logits(hidden_ND, weight_VD)
        losses.append(F.cross_entropy(logits_NV, targets_N, reduction="none").float())
        first.append(logits_NV.argmax(-1) == targets_N)
    losses_BT[taught_BT] = torch.cat(losses)
    first_BT[taught_BT] = torch.cat(first)
    return TokenScores(losses_BT, first_BT)
