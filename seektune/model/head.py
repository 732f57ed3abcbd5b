"""The LM head: logits, cross-entropies and token scores from hidden states and the head's weight `[V, D]`.

Losses and scores are computed by chunks of tokens, so that logits of whole rows never exist.
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
"""Tokens whose logits exist at a time in `token_scores`."""


class Head(Linear):
    """The LM head; logits and losses use its weight directly."""

    def values(self) -> Tensor:
        """The weight `[V, D]`."""
        return self.weight


@dataclass(frozen=True)
class HiddenStates:
    """The head's inputs."""

    main_BTD: Tensor
    """Position t predicts token t + 1."""
    mtp_BTD: Tensor | None
    """Position t has read token t + 1 and predicts token t + 2; None if the MTP block did not run."""


@dataclass(frozen=True)
class Taught:
    """Unshifted labels of all tokens, -100 for those that are not taught, and the divisor of the losses."""

    labels_BT: Tensor
    divisor: Tensor | int

    @classmethod
    def of(cls, labels_BT: Tensor, layout: SequenceLayout, divisor: Tensor | int | None) -> "Taught":
        """Labels with a divisor; the number of taught tokens if None."""
        if divisor is None:
            divisor = (layout.targets(labels_BT, steps=1) != IGNORE_INDEX).sum().clamp(min=1)
        return cls(labels_BT, divisor)


@dataclass(frozen=True)
class Losses:
    """Cross-entropies over the divisor of `Taught`."""

    loss: Tensor
    """Next-token loss."""
    mtp: Tensor | None
    """Loss of the MTP block, which predicts the token after the next; None if it did not run."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of the taught tokens of rows, at the positions that predict them."""

    losses_BT: Tensor
    """Negative log-likelihood in nats, fp32; 0 where nothing is taught."""
    first_BT: Tensor
    """Whether the token is the model's most likely one, bool."""


def token_logits(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    """fp32 `[B, T, V]`."""
    return linear(upcast(hidden_BTD), upcast(weight_VD))


def token_loss(hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, steps: int, weight_VD: Tensor) -> Tensor:
    """Cross-entropy of the taught tokens, each predicted `steps` tokens before it, over the divisor of `taught`."""
    hidden_ND, targets_N = layout.taught(hidden_BTD, layout.targets(taught.labels_BT, steps))
    return linear_cross_entropy(hidden_ND, weight_VD, targets_N) / taught.divisor


@torch.no_grad()
def token_scores(hidden_BTD: Tensor, targets_BT: Tensor, weight_VD: Tensor) -> TokenScores:
    """Score the target of each position; -100 is not a target."""
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
