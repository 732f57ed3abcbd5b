"""The training objective: next-token loss, MTP loss and balance loss, each over a denominator of the whole step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.gate import RoutingLedger
from seektune.model.head import Losses


@dataclass(frozen=True)
class DraftObjective:
    """The training of DSpark stages instead of the model."""

    anchors: int
    """Tokens of a micro-batch from which drafts are trained."""
    micro_batches: int
    """Of the whole step."""
    seed: int
    """Of the choice of anchors in this step."""


@dataclass(frozen=True)
class Objective:
    """The denominators of a step and the weights of its losses."""

    taught: int
    """Tokens of the whole step that the next-token loss counts."""
    tokens: int
    """Tokens of the whole step, without padding."""
    mtp: bool
    """Whether the MTP block runs."""
    mtp_weight: float = 0.0
    balance_weight: float = 0.0
    drafts: DraftObjective | None = None
    """Train the DSpark stages, and nothing else."""

    def ledger(self) -> RoutingLedger:
        """An empty ledger for a forward pass."""
        return RoutingLedger(balance_loss=self.balance_weight > 0)

    def balance(self, ledger: RoutingLedger) -> Tensor | None:
        """The balance loss of the layers in a ledger, per token of the whole step; None if it is off."""
        return torch.stack(list(ledger.balance.values())).sum() / self.tokens if ledger.balance else None

    def total(self, parts: "LossParts") -> Tensor:
        """The weighted sum of the losses, for backward."""
        return parts.loss + self.mtp_weight * parts.mtp + self.balance_weight * parts.balance


@dataclass(frozen=True)
class LossParts:
    """A micro-batch's share of the step's losses; the shares of all micro-batches and processes sum to the step's."""

    loss: Tensor
    """Next-token cross-entropy over the taught tokens of the whole step."""
    mtp: Tensor
    """The MTP block's cross-entropy, over the same number; 0 if it did not run."""
    balance: Tensor
    """Sequence-wise balance loss summed over layers, per token of the whole step; 0 if it is off."""

    @classmethod
    def of(cls, losses: Losses | None, balance: Tensor | None, zero: Tensor) -> "LossParts":
        """From the parts that were computed; `zero` for the others."""
        return cls(
            loss=zero if losses is None else losses.loss,
            mtp=zero if losses is None or losses.mtp is None else losses.mtp,
            balance=zero if balance is None else balance,
        )

    def values(self) -> Tensor:
        """The three numbers without their graph, fp32 `[3]`."""
        return torch.stack([part.detach().float() for part in (self.loss, self.mtp, self.balance)])
