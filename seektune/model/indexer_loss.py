"""The training of indexers: each learns, by a loss of its own, which entries the attention of its layer pays most.

Shapes: B rows, T tokens, S sampled tokens, N keys, H index heads, I index width, A attention heads, C head width,
E entries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.kernels import Prefix, Visible, index_divergence, index_recall, window_logsumexp
from seektune.model.attach_loss import attach_loss
from seektune.model.flops import SAMPLED
from seektune.sequence import SequenceLayout


@dataclass(frozen=True)
class IndexerTask:
    """What the indexers of a model learn in a step."""

    tokens: int
    """Of the whole step, without padding, by which the sum of divergences is divided."""
    alone: bool
    """Warm-up: attention sees all entries, and nothing but the indexers is trained."""


@dataclass(frozen=True)
class IndexVectors:
    """What an indexer scores entries with; its input has no gradient."""

    q_BTHI: Tensor
    keys_BEI: Tensor
    weights_BTH: Tensor


class IndexerLesson:
    """What the indexer of one layer learns in one forward pass. Not a dataclass: see `RoutingLedger`."""

    def __init__(self, task: IndexerTask):
        self.task = task
        self.loss: Tensor | None = None
        """Its share of the loss of the step, fp32; None for a layer without indexer."""
        self.recall = torch.zeros(2, dtype=torch.int64)
        """As `index_recall`."""

    def run(self, streams_BTSD: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        """The block's output, to which the loss is attached; in a warm-up the gradient goes past the block."""
        if not self.task.alone:
            out = block(streams_BTSD)
            return out if self.loss is None else attach_loss(out, self.loss)
        out = block(streams_BTSD.detach())
        before = nothing_of(streams_BTSD)
        return attach_loss(out, before if self.loss is None else before + self.loss)

    def learn(
        self,
        vectors: IndexVectors,
        q_BTAC: Tensor,
        keys_BNC: Tensor,
        entries_BEC: Tensor,
        sink_A: Tensor,
        window: int,
        everything: Prefix,
        visible: Visible,
        topk: int,
        layout: SequenceLayout,
    ) -> None:
        """Compare the indexer with the attention of these queries, keys and entries, which are constants here."""
        q_BTAC = q_BTAC.detach()
        entries_BEC = entries_BEC.detach()
        scored = vectors.q_BTHI, vectors.keys_BEI, vectors.weights_BTH
        rest_BTA = window_logsumexp(q_BTAC, keys_BNC.detach(), sink_A.detach(), layout.positions, window)
        self.loss = index_divergence(*scored, q_BTAC, rest_BTA, entries_BEC, visible) / self.task.tokens
        index_BS, exists_BS = sampled(layout)
        rows_B1 = torch.arange(len(index_BS), device=index_BS.device)[:, None]
        q_BSHI, weights_BSH, q_BSAC, rest_BSA, first_BS, count_BS = (
            x[rows_B1, index_BS]
            for x in (scored[0], scored[2], q_BTAC, rest_BTA, everything.first_BT, everything.count_BT)
        )
        seen = Prefix(first_BS, torch.where(exists_BS, count_BS, 0))
        self.recall = index_recall(q_BSHI, scored[1], weights_BSH, q_BSAC, rest_BSA, entries_BEC, seen, topk)


def nothing_of(x: Tensor) -> Tensor:
    """A 0 in fp32 through which the gradient reaches what `x` is made of, as zeros."""
    return x[:, :0].sum(dtype=torch.float32)


def sampled(layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    """Indices `[B, S]` of the tokens here at which recall is measured, and whether each slot has one.

    Recall needs full attention, so it is measured only where a position, counted from 1, is a multiple of `SAMPLED`.
    Positions alone decide, so that packed rows and slices of rows sample the same tokens.
    """
    rows, length = layout.positions.shape
    slots = -(-length // SAMPLED)
    chosen = ((layout.positions + 1) % SAMPLED == 0) & layout.real
    slot = torch.where(chosen, chosen.cumsum(dim=1) - 1, slots)
    index = torch.arange(length, device=slot.device).expand(rows, length)
    index_BS = torch.zeros(rows, slots + 1, dtype=torch.int64, device=slot.device).scatter(1, slot, index)
    exists_BS = torch.zeros_like(index_BS, dtype=torch.bool).scatter(1, slot, True)
    return index_BS[:, :slots], exists_BS[:, :slots]
