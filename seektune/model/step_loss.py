"""The loss of a step: an objective, the MTP loss and the balance loss, each over a denominator of the whole step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.dspark_loss import Anchors, choose_anchors
from seektune.model.gate import RoutingLedger
from seektune.model.head import Losses
from seektune.model.indexer_loss import IndexerTraining
from seektune.model.objective import CROSS_ENTROPY, Objective
from seektune.sequence import SequenceLayout

LOSS = "loss"
"""The objective's loss."""
MTP_LOSS = "mtp_loss"
"""The MTP block's cross-entropy per taught token of the whole step, or per weight; 0 if it did not run."""
BALANCE_LOSS = "balance_loss"
"""Sequence-wise balance loss summed over layers, per token of the whole step; 0 if it is off."""
INDEXER_LOSS = "indexer_loss"
"""Divergence of the indexers from attention, summed over layers, per token of the whole step. Its gradient begins in
the layers, so it is not among `LOSSES`."""
LOSSES = (LOSS, MTP_LOSS, BALANCE_LOSS)
"""The parts whose weighted sum is differentiated."""
DRAFT_PARTS = ("draft_cross_entropy", "draft_distance", "draft_confidence")
"""The parts of a drafter's loss, as in `DraftLosses`."""


@dataclass(frozen=True)
class DraftObjective:
    """The training of DSpark stages instead of the model."""

    anchors: int
    """Tokens of a micro-batch from which drafts are trained."""
    micro_batches: int
    """Of the whole step."""
    seed: int
    """Of the choice of anchors in this step."""

    def choose(self, ids_BT: Tensor, layout: SequenceLayout, labels_BT: Tensor) -> Anchors:
        """The anchors of a micro-batch, the same in whatever process."""
        return choose_anchors(layout, labels_BT, self.anchors, self.seed + int(ids_BT.sum()))


@dataclass(frozen=True)
class StepLoss:
    """The denominators of a step and the weights of its losses.

    A part is a micro-batch's share of a value of the step, by name; the shares of all micro-batches, pipeline stages
    and processes sum to it.
    """

    taught: int
    """Tokens of the whole step that the next-token loss counts."""
    tokens: int
    """Tokens of the whole step, without padding."""
    mtp: bool
    """Whether the MTP block runs."""
    mtp_weight: float = 0.0
    balance_weight: float = 0.0
    weight: float | None = None
    """Sum of the weights of the taught tokens, by which cross-entropies are divided; None without weights."""
    objective: Objective = CROSS_ENTROPY
    count: float | None = None
    """What the objective counts in the whole step; None for the divisor of cross-entropies."""
    drafts: DraftObjective | None = None
    """Train the DSpark stages, and nothing else."""
    indexers: IndexerTraining | None = None
    """How indexers are trained; None if they are frozen."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts, in a fixed order."""
        indexers = () if self.indexers is None else (INDEXER_LOSS,)
        return *LOSSES, *indexers, *(self.objective.part_names if self.drafts is None else DRAFT_PARTS)

    @property
    def indexers_alone(self) -> bool:
        """Whether nothing but the indexers is trained."""
        return self.indexers is not None and self.indexers.warmup

    @property
    def divisor(self) -> float:
        """What cross-entropies are divided by."""
        return self.taught if self.weight is None else self.weight

    def ledger(self) -> RoutingLedger:
        """An empty ledger for a forward pass."""
        return RoutingLedger(balance_loss=self.balance_weight > 0, indexers=self.indexers)

    def parts(self, losses: Losses | None, ledger: RoutingLedger) -> dict[str, Tensor]:
        """The parts that a stage has computed."""
        found = {}
        if ledger.balance:
            found[BALANCE_LOSS] = torch.stack(list(ledger.balance.values())).sum() / self.tokens
        if of_indexers := [each.loss for each in ledger.indexer_losses.values() if each.loss is not None]:
            found[INDEXER_LOSS] = torch.stack(of_indexers).sum()
        if losses is not None:
            found |= {LOSS: losses.loss, **losses.parts}
        if losses is not None and losses.mtp is not None:
            found[MTP_LOSS] = losses.mtp
        return found

    def total(self, parts: Mapping[str, Tensor], zero: Tensor) -> Tensor:
        """The weighted sum of the losses, for backward; `zero` in place of those that are not among the parts."""
        ahead = self.mtp_weight * parts.get(MTP_LOSS, zero)
        return parts.get(LOSS, zero) + ahead + self.balance_weight * parts.get(BALANCE_LOSS, zero)
