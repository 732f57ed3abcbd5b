"""The indexer's top-k, scored for a few queries at a time, and only if there are more than k entries to choose from.

Shapes: B rows, T tokens, Q queries of a chunk, H index heads, I index width, E entries, S entries that a chunk sees,
K chosen entries.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import Chosen, Prefix

QUERIES = 64
SCORES = 2**19
"""Most per-head scores that exist at a time; more entries are split into several steps."""
BLOCK = 16
"""Entries of a block, of which only the largest score is compared first."""


@torch.no_grad()
def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen:
    """See `reference.index_topk`; the order within a list may differ."""
    keys_BEI = upcast(keys_BEI)
    k = min(k, keys_BEI.shape[1])
    rows, length = visible.first_BT.shape
    chosen = [visible.first_BT.new_empty(rows, 0 if rows else length, k)]
    for start in range(0, length if rows else 0, QUERIES):
        part = slice(start, start + QUERIES)
        first_BQ1 = visible.first_BT[:, part, None]
        count_BQ1 = visible.count_BT[:, part, None]
        if int(count_BQ1.max()) <= k:
            order = torch.arange(k, device=first_BQ1.device)
            chosen.append(torch.where(order < count_BQ1, first_BQ1 + order, -1))
            continue
        low = int(torch.where(count_BQ1 > 0, first_BQ1, keys_BEI.shape[1]).min())
        high = int((first_BQ1 + count_BQ1).max())
        scores_BQS = _scores(upcast(q_BTHI[:, part]), keys_BEI[:, low:high], upcast(weights_BTH[:, part]))
        _mask_unseen(scores_BQS, first_BQ1 - low, count_BQ1)
        best = topk_indices(scores_BQS.flatten(0, 1), k)
        chosen.append(torch.where(best >= 0, best + low, -1).view(*scores_BQS.shape[:2], k))
    return Chosen(torch.cat(chosen, dim=1))


def _scores(q_BQHI: Tensor, keys_BSI: Tensor, weights_BQH: Tensor) -> Tensor:
    """`sum_h w_h relu(q_h · key)`, `[B, Q, S]`."""
    rows, queries, heads, _ = q_BQHI.shape
    q = q_BQHI.flatten(1, 2)
    weights = weights_BQH.flatten(0, 1).unsqueeze(1)
    out = q.new_empty(rows, queries, keys_BSI.shape[1])
    step = max(SCORES // (rows * queries * heads), BLOCK)
    for start in range(0, keys_BSI.shape[1], step):
        entries = slice(start, start + step)
        by_head = torch.bmm(q, keys_BSI[:, entries].mT).relu_().view(rows * queries, heads, -1)
        out[..., entries] = torch.bmm(weights, by_head).view(rows, queries, -1)
    return out


def _mask_unseen(scores_BQS: Tensor, first_BQ1: Tensor, count_BQ1: Tensor) -> None:
    """Set unseen entries to -inf; those between the latest first and the earliest end are seen by all queries."""
    size = scores_BQS.shape[2]
    end_BQ1 = first_BQ1 + count_BQ1
    latest = min(int(first_BQ1.max()), size)
    soonest = max(int(end_BQ1.min()), latest)
    for low, high in ((0, latest), (soonest, size)):
        index = torch.arange(low, high, device=first_BQ1.device)
        scores_BQS[..., low:high].masked_fill_((index < first_BQ1) | (index >= end_BQ1), -torch.inf)


def topk_indices(scores_NS: Tensor, k: int) -> Tensor:
    """Indices of the `k` largest scores of each row, `[N, k]`; ties go to the earlier one, -inf gives -1."""
    values, index, tied_N = _largest(scores_NS, k)
    least_N1 = values.amin(dim=1, keepdim=True)
    index = torch.where(values == -torch.inf, -1, index)
    tied_N &= least_N1.squeeze(1) > -torch.inf
    if bool(tied_N.any()):
        index[tied_N] = _earliest(scores_NS[tied_N], least_N1[tied_N], k)
    return index


def _earliest(scores_NS: Tensor, least_N1: Tensor, k: int) -> Tensor:
    """Indices of all scores above the k-th largest, and the first ones of those equal to it."""
    above = scores_NS > least_N1
    equal = scores_NS == least_N1
    wanted_N1 = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= wanted_N1))
    return taken.nonzero()[:, 1].view(-1, k)


def _largest(scores_NS: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """`topk` values and indices, and whether further scores equal the smallest of them, bool `[N]`.

    In a long row, only the blocks with the k largest maxima are searched: they contain the k largest scores.
    """
    rows, size = scores_NS.shape
    blocks = size // BLOCK
    if blocks < 2 * k:
        values, index = scores_NS.topk(k, dim=1, sorted=False)
        return values, index, (scores_NS >= values.amin(dim=1, keepdim=True)).sum(dim=1) > k
    peaks = scores_NS[:, : blocks * BLOCK].view(rows, blocks, BLOCK).amax(dim=2)
    places = peaks.topk(k, dim=1, sorted=False).indices.unsqueeze(2) * BLOCK
    places = (places + torch.arange(BLOCK, device=places.device)).flatten(1)
    rest = torch.arange(blocks * BLOCK, size, device=places.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    candidates = scores_NS.gather(1, places)
    values, index = candidates.topk(k, dim=1, sorted=False)
    least = values.amin(dim=1, keepdim=True)
    tied = ((candidates >= least).sum(dim=1) > k) | ((peaks >= least).sum(dim=1) > k)
    return values, places.gather(1, index), tied
