"""The LM head: logits, cross-entropies and token scores from hidden states and the head's weight `[V, D]`.

Losses and scores are computed by chunks of tokens, so that logits of whole rows never exist.
Shapes: B rows, T tokens, D width, V vocabulary, N taught tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels import linear, linear_cross_entropy, upcast
from seektune.model.linear import Linear
from seektune.sequence import IGNORE_INDEX, WEIGHTS, SequenceLayout

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
class TaughtTokens:
    """The taught tokens of this device, at the positions that predict them."""

    hidden_ND: Tensor
    targets_N: Tensor
    columns: Mapping[str, Tensor]
    """Of the batch, `[N]` each."""


@dataclass(frozen=True)
class Taught:
    """Unshifted labels of all tokens, -100 for those that are not taught, and the divisor of cross-entropies."""

    labels_BT: Tensor
    divisor: Tensor | float
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the batch, `[B, T]` each."""

    @classmethod
    def of(cls, labels_BT: Tensor, layout: SequenceLayout, divisor: Tensor | int | None) -> "Taught":
        """Labels with a divisor; the number of taught tokens if None."""
        if divisor is None:
            divisor = (layout.targets(labels_BT, steps=1) != IGNORE_INDEX).sum().clamp(min=1)
        return cls(labels_BT, divisor)

    def tokens(self, hidden_BTD: Tensor, layout: SequenceLayout, steps: int) -> TaughtTokens:
        """The taught tokens, each with the hidden state `steps` tokens before it."""
        targets_BT = layout.targets(self.labels_BT, steps)
        hidden_ND, targets_N = layout.taught(hidden_BTD, targets_BT)
        ahead = {name: layout.ahead(x_BT, steps, 0) for name, x_BT in self.columns.items()}
        return TaughtTokens(
            hidden_ND, targets_N, {name: layout.taught(x_BT, targets_BT)[0] for name, x_BT in ahead.items()}
        )


@dataclass(frozen=True)
class Losses:
    """The objective's loss and that of the MTP block."""

    loss: Tensor
    """Next-token cross-entropy over the divisor of `Taught`, or the loss of another objective over its own."""
    mtp: Tensor | None
    """Cross-entropy of the MTP block, which predicts the token after the next, over the divisor of `Taught`; None if
    the block did not run."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Further parts of the objective by name, without graph."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of the taught tokens of rows, at the positions that predict them."""

    losses_BT: Tensor
    """Negative log-likelihood in nats, fp32; 0 where nothing is taught."""
    first_BT: Tensor
    """Whether the token is the model's most likely one, bool."""

    @classmethod
    def joined(cls, parts: Sequence["TokenScores"]) -> "TokenScores":
        """The scores of the rows of all parts, in order; those of no rows if there is no part."""
        if not parts:
            return cls(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        return cls(torch.cat([part.losses_BT for part in parts]), torch.cat([part.first_BT for part in parts]))


def token_logits(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    """fp32 `[B, T, V]`."""
    return linear(upcast(hidden_BTD), upcast(weight_VD))


def token_loss(hidden_BTD: Tensor, layout: SequenceLayout, taught: Taught, steps: int, weight_VD: Tensor) -> Tensor:
    """Sum of the cross-entropies of the taught tokens, each predicted `steps` tokens before it.

    With a column of weights, these multiply the tokens' terms.
    """
    tokens = taught.tokens(hidden_BTD, layout, steps)
    weights_N = tokens.columns.get(WEIGHTS)
    return linear_cross_entropy(tokens.hidden_ND, weight_VD, tokens.targets_N, weights_N)


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
