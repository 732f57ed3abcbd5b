"""The divergence of an indexer's scores, with gradients computed in forward: each chunk of scores is computed once.

Shapes: B rows, T queries, Q queries of a chunk, H index heads, I index width, A attention heads, C head width,
E entries, K entries that a chunk sees, G groups of queries that share a matrix: B for a slice of the entries, B * Q for
chosen ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.index_divergence import log_softmax_of_seen
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import Chosen, Visible

ON_CPU = 2**19
ON_GPU = 2**27
"""Most scores of a chunk, all heads of all its queries."""


def index_divergence(
    q_BTHI: Tensor,
    keys_BEI: Tensor,
    weights_BTH: Tensor,
    attention_q_BTAC: Tensor,
    window_lse_BTA: Tensor,
    entries_BEC: Tensor,
    visible: Visible,
) -> Tensor:
    """See `reference.index_divergence`. Saves the gradients of the first three arguments, if they may be needed."""
    constants = attention_q_BTAC.detach(), window_lse_BTA.detach(), entries_BEC.detach()
    out: Tensor = _IndexDivergence.apply(q_BTHI, keys_BEI, weights_BTH, *constants, visible, torch.is_grad_enabled())
    return out


class _IndexDivergence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, q_BTHI, keys_BEI, weights_BTH, attention_q_BTAC, window_lse_BTA, entries_BEC, visible, is_training
    ):
        keys = upcast(keys_BEI)
        entries = upcast(entries_BEC)
        needs_gradients = is_training and any(ctx.needs_input_grad[:3])
        gradients = _Gradients.zeros(q_BTHI, keys, weights_BTH) if needs_gradients else None
        sums = [keys.new_zeros(())]
        heads = max(q_BTHI.shape[2], attention_q_BTAC.shape[2], 1)
        for part, seen in _parts(visible, q_BTHI, heads, keys.shape[1]):
            scores = _Scores.of(upcast(q_BTHI[:, part]), seen.values(keys), upcast(weights_BTH[:, part]))
            log_attention_BQK = _log_attention(
                upcast(attention_q_BTAC[:, part]), seen.values(entries), window_lse_BTA[:, part], seen.seen_BQK
            )
            log_p = log_softmax_of_seen(log_attention_BQK, seen.seen_BQK)
            log_q = log_softmax_of_seen(scores.sums_BQK, seen.seen_BQK)
            terms_BQK = log_p.exp() * (log_p - log_q)
            sums.append(torch.where(seen.seen_BQK, terms_BQK, 0.0).sum())
            if gradients is not None:
                gradients.add(part, seen, scores, torch.where(seen.seen_BQK, log_q.exp() - log_p.exp(), 0.0))
        if gradients is not None:
            ctx.save_for_backward(gradients.q_BTHI, gradients.keys_BEI.to(keys_BEI.dtype), gradients.weights_BTH)
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return *((x * grad).to(x.dtype) for x in ctx.saved_tensors), *([None] * 5)


@dataclass(frozen=True)
class _Seen:
    """The entries of a chunk: a slice of all, or rows of the flattened entries, and which each query sees."""

    place: slice | Tensor
    seen_BQK: Tensor

    def values(self, x_BEC: Tensor) -> Tensor:
        """`[G, K, C]`."""
        if isinstance(self.place, slice):
            return x_BEC[:, self.place]
        rows, queries, chosen = self.seen_BQK.shape
        return x_BEC.flatten(0, 1).index_select(0, self.place).view(rows * queries, chosen, -1)

    def add(self, total_BEC: Tensor, x_GKC: Tensor) -> None:
        """Add gradients of `values` to those of all entries."""
        if isinstance(self.place, slice):
            total_BEC[:, self.place] += x_GKC
        else:
            total_BEC.view(-1, total_BEC.shape[-1]).index_add_(0, self.place, x_GKC.flatten(0, 1))


@dataclass(frozen=True)
class _Scores:
    """Index scores of a chunk, and what their gradient needs."""

    q_BQHI: Tensor
    keys_GKI: Tensor
    weights_BQH: Tensor
    by_head_BQHK: Tensor
    sums_BQK: Tensor

    @classmethod
    def of(cls, q_BQHI: Tensor, keys_GKI: Tensor, weights_BQH: Tensor) -> "_Scores":
        """The scores of queries."""
        by_head_BQHK = _product(q_BQHI, keys_GKI.mT).relu_()
        sums_BQK = (weights_BQH.unsqueeze(2) @ by_head_BQHK).squeeze(2)
        return cls(q_BQHI, keys_GKI, weights_BQH, by_head_BQHK, sums_BQK)


@dataclass(frozen=True)
class _Gradients:
    q_BTHI: Tensor
    keys_BEI: Tensor
    weights_BTH: Tensor

    @classmethod
    def zeros(cls, q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor) -> "_Gradients":
        contiguous = torch.contiguous_format
        return cls(*(torch.zeros_like(x, memory_format=contiguous) for x in (q_BTHI, keys_BEI, weights_BTH)))

    def add(self, part: slice, seen: _Seen, scores: _Scores, slope_BQK: Tensor) -> None:
        """Add those of a chunk; `slope_BQK` is the gradient of its scores."""
        self.weights_BTH[:, part] = (scores.by_head_BQHK @ slope_BQK.unsqueeze(3)).squeeze(3)
        by_head_BQHK = scores.weights_BQH.unsqueeze(3) * slope_BQK.unsqueeze(2) * (scores.by_head_BQHK > 0)
        self.q_BTHI[:, part] = _product(by_head_BQHK, scores.keys_GKI)
        groups = len(scores.keys_GKI)
        x_GQK, q_GQI = (x.reshape(groups, -1, x.shape[-1]) for x in (by_head_BQHK, scores.q_BQHI))
        seen.add(self.keys_BEI, x_GQK.mT @ q_GQI)


def _log_attention(attention_q_BQAC: Tensor, entries_GKC: Tensor, window_lse_BQA: Tensor, seen_BQK: Tensor) -> Tensor:
    """As in `reference`."""
    logits_BQAK = _product(attention_q_BQAC * attention_q_BQAC.shape[-1] ** -0.5, entries_GKC.mT)
    far_BQA = logits_BQAK.masked_fill(~seen_BQK.unsqueeze(2), -torch.inf).logsumexp(dim=-1)
    return logits_BQAK.sub_(torch.logaddexp(far_BQA, window_lse_BQA).unsqueeze(-1)).logsumexp(dim=2)


def _product(x_BQHI: Tensor, matrix_GIO: Tensor) -> Tensor:
    """`[B, Q, H, O]`, with one matrix for all queries of a row (G = B), or one per query (G = B * Q)."""
    groups, inner, outer = matrix_GIO.shape
    rows, queries, heads, _ = x_BQHI.shape
    x_GXI = x_BQHI.reshape(groups, rows * queries * heads // max(groups, 1), inner)
    return torch.bmm(x_GXI, matrix_GIO).view(rows, queries, heads, outer)


def _parts(visible: Visible, q_BTHI: Tensor, heads: int, entries: int) -> Iterator[tuple[slice, _Seen]]:
    """The chunks of queries and what they see, without those that see nothing."""
    rows, length = q_BTHI.shape[:2]
    width = visible.index_BTK.shape[-1] if isinstance(visible, Chosen) else entries
    most = ON_GPU if q_BTHI.is_cuda else ON_CPU
    size = max(most // max(rows * heads * width, 1), 1)
    starts = range(0, length if rows and width else 0, size)
    if isinstance(visible, Chosen):
        row_starts = torch.arange(rows, device=q_BTHI.device)[:, None, None] * entries
        for start in starts:
            index_BQK = visible.index_BTK[:, start : start + size]
            yield slice(start, start + size), _Seen((index_BQK.clamp(min=0) + row_starts).flatten(), index_BQK >= 0)
        return
    # only the entries up to the last that a query of the chunk sees; read at once, to wait for the device once
    ends_BT = torch.where(visible.count_BT > 0, visible.first_BT + visible.count_BT, 0)
    ends = torch.stack([ends_BT[:, start : start + size].max() for start in starts]).tolist() if starts else []
    for start, end in zip(starts, ends, strict=True):
        if end == 0:
            continue
        part = slice(start, start + size)
        index = torch.arange(end, device=q_BTHI.device) - visible.first_BT[:, part, None]
        yield part, _Seen(slice(0, end), (index >= 0) & (index < visible.count_BT[:, part, None]))
