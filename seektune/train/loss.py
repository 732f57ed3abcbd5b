"""What a step minimises: next-token loss, MTP loss and balance loss over one denominator."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.causal_lm import CausalLMOutput
from seektune.model.gate import RoutingLedger
from seektune.train.config import LossConfig


@dataclass(frozen=True)
class LossParts:
    """A micro-batch's share of the step's losses; the shares of all micro-batches sum to the step's."""

    loss: Tensor
    """Next-token cross-entropy over the taught tokens of the whole step."""
    mtp: Tensor
    """The MTP block's, over the same number; 0 where it did not run."""
    balance: Tensor
    """Sequence-wise balance loss summed over layers, per token of the whole step; 0 where it is off."""

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum that backward starts from."""
        return self.loss + config.mtp_weight * self.mtp + config.balance_weight * self.balance

    def detached(self) -> "LossParts":
        """The values without their graph."""
        return LossParts(self.loss.detach(), self.mtp.detach(), self.balance.detach())


def loss_parts(output: CausalLMOutput, ledger: RoutingLedger, tokens: int) -> LossParts:
    """The losses of one micro-batch; `tokens` are the real tokens of the whole step."""
    assert output.loss is not None, "the model was called without labels"
    zero = output.loss.new_zeros(())
    mtp = zero if output.mtp_loss is None else output.mtp_loss
    balance = torch.stack(list(ledger.balance.values())).sum() / tokens if ledger.balance else zero
    return LossParts(output.loss, mtp, balance)


def sum_parts(parts: Iterable[LossParts]) -> LossParts:
    """The step's losses from its micro-batches'."""
    every = list(parts)
    return LossParts(
        torch.stack([part.loss for part in every]).sum(),
        torch.stack([part.mtp for part in every]).sum(),
        torch.stack([part.balance for part in every]).sum(),
    )
