"""The loss that trains the indexer of a layer: the KL divergence from its layer's attention to its scores.

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
class IndexerTraining:
    """How indexers are trained in a step."""

    tokens: int
    """Tokens of the whole step without padding, by which the sum of divergences is divided."""
    warmup: bool
    """Whether only the indexers are trained, while attention sees all entries."""


@dataclass(frozen=True)
class IndexVectors:
    """Queries, keys and head weights of which an indexer computes scores; no gradient reaches its input."""

    q_BTHI: Tensor
    keys_BEI: Tensor
    weights_BTH: Tensor


class IndexerLoss:
    """The loss and recall of one layer's indexer in one forward pass. Not a dataclass: see `RoutingLedger`."""

    def __init__(self, training: IndexerTraining, recall: Tensor | None = None):
        self.training = training
        self.loss: Tensor | None = None
        """The indexer's part of the loss of the step, fp32; None without an indexer."""
        self.recall = recall
        """As `index_recall`; None without an indexer."""

    def run_block(self, streams_BTSD: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        """The block's output with the loss attached; in a warm-up, the output's gradient does not reach the block."""
        if not self.training.warmup:
            out = block(streams_BTSD)
            return out if self.loss is None else attach_loss(out, self.loss)
        out = block(streams_BTSD.detach())
        zero = zero_connected_to(streams_BTSD)
        return attach_loss(out, zero if self.loss is None else zero + self.loss)

    def compute(
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
        """Set the loss, and the recall if there is none.

        Queries, keys, entries and sink of the layer's attention are constants in it.
        """
        q_BTAC = q_BTAC.detach()
        entries_BEC = entries_BEC.detach()
        window_lse_BTA = window_logsumexp(q_BTAC, keys_BNC.detach(), sink_A.detach(), layout.positions, window)
        attention = q_BTAC, window_lse_BTA, entries_BEC
        indexer = vectors.q_BTHI, vectors.keys_BEI, vectors.weights_BTH
        self.loss = index_divergence(*indexer, *attention, visible) / self.training.tokens
        if self.recall is None:
            self.recall = _recall(vectors, *attention, everything, topk, layout)


@torch.no_grad()
def _recall(
    vectors: IndexVectors,
    q_BTAC: Tensor,
    window_lse_BTA: Tensor,
    entries_BEC: Tensor,
    everything: Prefix,
    topk: int,
    layout: SequenceLayout,
) -> Tensor:
    """`index_recall` at the sampled tokens."""
    index_BS, exists_BS = sampled(layout)
    rows_B1 = torch.arange(len(index_BS), device=index_BS.device)[:, None]
    of_queries = vectors.q_BTHI, vectors.weights_BTH, q_BTAC, window_lse_BTA
    q_BSHI, weights_BSH, q_BSAC, window_lse_BSA = (x[rows_B1, index_BS] for x in of_queries)
    first_BS, count_BS = (x[rows_B1, index_BS] for x in (everything.first_BT, everything.count_BT))
    seen = Prefix(first_BS, torch.where(exists_BS, count_BS, 0))
    return index_recall(q_BSHI, vectors.keys_BEI, weights_BSH, q_BSAC, window_lse_BSA, entries_BEC, seen, topk)


def zero_connected_to(x: Tensor) -> Tensor:
    """0 in fp32, through which backward reaches `x` and what it depends on, with gradients of zero."""
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
