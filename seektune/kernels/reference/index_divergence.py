"""KL divergence from attention probabilities to an indexer's scores, and the recall of its top-k.

Shapes: B rows, T queries, N keys, Q queries of a chunk, H index heads, I index width, A attention heads, C head width,
E entries, K entries that a chunk sees.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import CHUNK, Prefix, Visible, query_product

RANKED = 32
"""Queries whose entries are ranked at a time."""


@torch.no_grad()
def window_logsumexp(q_BTAC: Tensor, keys_BNC: Tensor, sink_A: Tensor, positions_BT: Tensor, window: int) -> Tensor:
    """Log of the sum of `exp` of each query's logits with its window keys and of the sink, fp32 `[B, T, A]`.

    Keys and windows are those of `sparse_attention`. No gradient.
    """
    earlier = keys_BNC.shape[1] - q_BTAC.shape[1]
    sums = [upcast(q_BTAC[:, :0, :, 0])]
    for start in range(0, q_BTAC.shape[1], CHUNK):
        q_BQAC = upcast(q_BTAC[:, start : start + CHUNK]) * q_BTAC.shape[-1] ** -0.5
        own = earlier + start
        first = max(own - window + 1, 0)
        keys_BMC = upcast(keys_BNC[:, first : own + q_BQAC.shape[1]])
        index = torch.arange(keys_BMC.shape[1], device=keys_BMC.device)
        behind_QM = index[: q_BQAC.shape[1], None] + own - first - index
        reach_BQ1 = positions_BT[:, start : start + CHUNK, None].clamp(max=window - 1)
        near_BQM = (behind_QM >= 0) & (behind_QM <= reach_BQ1)
        logits_BQAM = (q_BQAC.flatten(1, 2) @ keys_BMC.mT).unflatten(1, q_BQAC.shape[1:3])
        logits_BQAM = logits_BQAM.masked_fill(~near_BQM.unsqueeze(2), -torch.inf)
        sums.append(torch.logaddexp(logits_BQAM.logsumexp(dim=-1), upcast(sink_A)))
    return torch.cat(sums, dim=1)


def index_divergence(
    q_BTHI: Tensor,
    keys_BEI: Tensor,
    weights_BTH: Tensor,
    attention_q_BTAC: Tensor,
    window_lse_BTA: Tensor,
    entries_BEC: Tensor,
    visible: Visible,
) -> Tensor:
    """Sum over queries of `KL(p || softmax(scores))` over the visible entries, fp32; 0 where none is visible.

    `scores` are the indexer's, `sum_h w_h relu(q_h · key)`. `p` has the attention probabilities of the
    entries, of one softmax over window, entries and sink, summed over heads and divided by their sum over the visible
    entries (DeepSeek-V3.2, section 2.1). Gradients reach the first three arguments; `p` is a constant. Chunks of
    queries are recomputed in backward.

    Args:
        q_BTHI: index queries.
        keys_BEI: index keys of the entries.
        weights_BTH: weights of index heads.
        attention_q_BTAC: rotated queries of attention.
        window_lse_BTA: `window_logsumexp` of these queries.
        entries_BEC: the entries.
        visible: those that attention, and the divergence, sees.
    """
    constants = attention_q_BTAC.detach(), window_lse_BTA.detach(), entries_BEC.detach()
    sums = [upcast(q_BTHI[:, :0]).sum() + upcast(keys_BEI[:, :0]).sum() + upcast(weights_BTH[:, :0]).sum()]
    for start in range(0, q_BTHI.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        arguments = q_BTHI, keys_BEI, weights_BTH, *constants, visible, part
        sums.append(checkpoint(_divergence, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(sums).sum()


@torch.no_grad()
def index_recall(
    q_BTHI: Tensor,
    keys_BEI: Tensor,
    weights_BTH: Tensor,
    attention_q_BTAC: Tensor,
    window_lse_BTA: Tensor,
    entries_BEC: Tensor,
    everything: Prefix,
    k: int,
) -> Tensor:
    """How many of the `k` entries with the largest `p` the indexer would choose, and of how many; int64 `[2]`.

    Arguments and `p` are those of `index_divergence`, with attention over all entries. Queries that see `k` entries or
    fewer have nothing to choose from, and do not count. Ties go to the earlier entry.
    """
    found = [everything.count_BT.new_zeros(2)]
    for start in range(0, q_BTHI.shape[1], RANKED):
        part = slice(start, start + RANKED)
        keys, seen_BQK = everything.select(upcast(keys_BEI), part)
        scores_BQK = _scores(upcast(q_BTHI[:, part]), keys, upcast(weights_BTH[:, part]))
        entries, _ = everything.select(upcast(entries_BEC), part)
        log_attention_BQK = _log_attention(
            upcast(attention_q_BTAC[:, part]), entries, window_lse_BTA[:, part], seen_BQK
        )
        counts_BQ = everything.count_BT[:, part] > k
        both_BQK = _largest(scores_BQK, seen_BQK, k) & _largest(log_attention_BQK, seen_BQK, k)
        found.append(torch.stack([(both_BQK & counts_BQ.unsqueeze(2)).sum(), counts_BQ.sum() * k]))
    return torch.stack(found).sum(dim=0)


def _divergence(
    q_BTHI: Tensor,
    keys_BEI: Tensor,
    weights_BTH: Tensor,
    attention_q_BTAC: Tensor,
    window_lse_BTA: Tensor,
    entries_BEC: Tensor,
    visible: Visible,
    part: slice,
) -> Tensor:
    keys, seen_BQK = visible.select(upcast(keys_BEI), part)
    entries, _ = visible.select(upcast(entries_BEC), part)
    scores_BQK = _scores(upcast(q_BTHI[:, part]), keys, upcast(weights_BTH[:, part]))
    log_attention_BQK = _log_attention(upcast(attention_q_BTAC[:, part]), entries, window_lse_BTA[:, part], seen_BQK)
    log_p = log_softmax_of_seen(log_attention_BQK, seen_BQK)
    terms_BQK = log_p.exp() * (log_p - log_softmax_of_seen(scores_BQK, seen_BQK))
    return torch.where(seen_BQK, terms_BQK, 0.0).sum()


def log_softmax_of_seen(x_BQK: Tensor, seen_BQK: Tensor) -> Tensor:
    """Log-softmax over the seen entries; 0 where not seen, so that its `exp` and their gradients are finite."""
    alone_BQ1 = ~seen_BQK.any(dim=-1, keepdim=True)
    normalizer_BQ1 = x_BQK.masked_fill(~(seen_BQK | alone_BQ1), -torch.inf).logsumexp(dim=-1, keepdim=True)
    return (x_BQK - normalizer_BQ1).masked_fill(~seen_BQK, 0.0)


def _scores(q_BQHI: Tensor, keys_BGKI: Tensor, weights_BQH: Tensor) -> Tensor:
    """`[B, Q, K]`; keys have a group for all queries of a row, or one for each query."""
    return (weights_BQH.unsqueeze(2) @ query_product(q_BQHI, keys_BGKI.mT).relu()).squeeze(2)


def _log_attention(attention_q_BQAC: Tensor, entries_BGKC: Tensor, window_lse_BQA: Tensor, seen_BQK: Tensor) -> Tensor:
    """Log of the probabilities of the entries, summed over heads, `[B, Q, K]`; finite also where not seen."""
    logits_BQAK = query_product(attention_q_BQAC * attention_q_BQAC.shape[-1] ** -0.5, entries_BGKC.mT)
    far_BQA = logits_BQAK.masked_fill(~seen_BQK.unsqueeze(2), -torch.inf).logsumexp(dim=-1)
    return (logits_BQAK - torch.logaddexp(far_BQA, window_lse_BQA).unsqueeze(-1)).logsumexp(dim=2)


def _largest(x_BQK: Tensor, seen_BQK: Tensor, k: int) -> Tensor:
    """Whether each entry is among the `k` largest that are seen, `[B, Q, K]`."""
    order = x_BQK.masked_fill(~seen_BQK, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(seen_BQK).scatter(-1, order, True) & seen_BQK
