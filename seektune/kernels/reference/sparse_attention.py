"""Attention of every query over a sliding window and the compressed entries visible to it.

Shapes: B rows, T queries, N keys (T and those before the first query), Q queries of a chunk, M window keys of a chunk,
H heads, C head width, E entries, K chosen entries. There is one key head, and keys are also the values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast

CHUNK = 128
"""Queries whose scores exist at a time."""


@dataclass(frozen=True)
class Prefix:
    """Each query sees `count` entries from `first` on, both int64 `[B, T]`."""

    first_BT: Tensor
    count_BT: Tensor

    def select(self, entries_BEC: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Entries `[B, 1, E, C]` of a chunk of queries, and which are visible, `[B, Q, E]`."""
        index = torch.arange(entries_BEC.shape[1], device=entries_BEC.device) - self.first_BT[:, part, None]
        return entries_BEC.unsqueeze(1), (index >= 0) & (index < self.count_BT[:, part, None])


@dataclass(frozen=True)
class Chosen:
    """Each query sees the entries of its list, int64 `[B, T, K]`; -1 is an empty slot."""

    index_BTK: Tensor

    def select(self, entries_BEC: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Entries `[B, Q, K, C]` of a chunk of queries, and which are visible, `[B, Q, K]`."""
        index = self.index_BTK[:, part]
        rows = torch.arange(index.shape[0], device=index.device)[:, None, None]
        return entries_BEC[rows, index.clamp(min=0)], index >= 0


Visible = Prefix | Chosen


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor:
    """`[B, T, H, C]`: one softmax over window, entries and sink (paper section 2.3; official `sparse_attn`).

    Keys end with the last query: query t has key `N - T + t`, and the N - T first keys precede all queries (from a
    cache, or from the previous rank of a context axis). A query sees its own key, the `min(position, window - 1)` keys
    before it, which belong to its document as positions count from 0 in each, and the entries of `visible`. Logits are
    q·k / sqrt(C); the sink is an extra logit that only adds to the denominator. Scores and sums are fp32, probabilities
    are rounded to the input's dtype. Chunks of queries are recomputed in backward, so memory is linear in T.
    """
    length = q_BTHC.shape[1]
    earlier = keys_BNC.shape[1] - q_BTHC.shape[1]
    assert earlier >= 0, "every query has a key"
    if length == 0:
        # every input stays in the graph, so that this rank's graph does not differ from other ranks'
        return (q_BTHC + keys_BNC[:, earlier:].unsqueeze(2) + entries_BEC.sum() + sink_H[:, None]).to(q_BTHC.dtype)
    chunks = []
    for start in range(0, length, CHUNK):
        part = slice(start, min(start + CHUNK, length))
        own = earlier + start
        near = slice(max(own - window + 1, 0), earlier + part.stop)
        reach = positions_BT[:, part].clamp(max=window - 1)
        arguments = q_BTHC[:, part], keys_BNC[:, near], own - near.start, reach, entries_BEC, visible, part, sink_H
        chunks.append(checkpoint(_attend, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(chunks, dim=1)


def _attend(
    q_BQHC: Tensor,
    keys_BMC: Tensor,
    offset: int,
    reach_BQ: Tensor,
    entries_BEC: Tensor,
    visible: Visible,
    part: slice,
    sink_H: Tensor,
) -> Tensor:
    """One chunk: its query i has window key `offset + i`, and sees that and the `reach` keys before it."""
    dtype = q_BQHC.dtype
    q = upcast(q_BQHC) * q_BQHC.shape[-1] ** -0.5
    entries, seen_BQK = visible.select(upcast(entries_BEC), part)
    window = upcast(keys_BMC).unsqueeze(1)
    index = torch.arange(window.shape[2], device=q.device)
    behind_QM = index[: q.shape[1], None] + offset - index
    near_BQM = (behind_QM >= 0) & (behind_QM <= reach_BQ.unsqueeze(-1))
    seen = torch.cat([near_BQM, seen_BQK], dim=-1).unsqueeze(2)
    scores_BQHK = torch.cat([query_product(q, window.mT), query_product(q, entries.mT)], dim=-1)
    scores_BQHK = scores_BQHK.masked_fill(~seen, -torch.inf)
    sink = upcast(sink_H)[:, None]
    top = torch.maximum(scores_BQHK.amax(-1, keepdim=True), sink).detach()
    weights = (scores_BQHK - top).exp()
    weights = weights / (weights.sum(-1, keepdim=True) + (sink - top).exp())
    near, far = upcast(weights.to(dtype)).split([window.shape[2], entries.shape[2]], dim=-1)
    return (query_product(near, window) + query_product(far, entries)).to(dtype)


def query_product(x_BQHI: Tensor, matrix_BGIO: Tensor) -> Tensor:
    """`[B, Q, H, O]`: one matrix for all queries of a row (G = 1), or one per query (G = Q)."""
    rows, queries, heads, inner = x_BQHI.shape
    groups = matrix_BGIO.shape[1]
    outer = matrix_BGIO.shape[3]
    product = x_BQHI.reshape(rows, groups, queries * heads // groups, inner) @ matrix_BGIO
    return product.reshape(rows, queries, heads, outer)
