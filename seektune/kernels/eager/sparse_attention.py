"""Sparse attention by chunks of queries, with a backward that recomputes the scores.

Shapes: B rows, T queries, N keys, Q queries of a chunk, M window keys of a chunk, H heads, C head width, E entries,
K entries that a chunk sees, L = M + K + 1 columns of its scores (window, entries, sink), G groups of queries that share
a matrix.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.chunks import Chunk, chunks
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import Visible
from seektune.kernels.reference.sparse_attention import sparse_attention as reference


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor:
    """`[B, T, H, C]`; see `reference.sparse_attention`. Saves only the inputs for backward."""
    assert keys_BNC.shape[1] >= q_BTHC.shape[1], "every query has a key"
    if q_BTHC.numel() == 0:
        return reference(q_BTHC, keys_BNC, entries_BEC, sink_H, positions_BT, window, visible)
    reach_BT = positions_BT.clamp(max=window - 1)
    out: Tensor = _SparseAttention.apply(q_BTHC, keys_BNC, entries_BEC, sink_H, reach_BT, window, visible)
    return out


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BTHC, keys_BNC, entries_BEC, sink_H, reach_BT, window, visible):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q_BTHC, keys_BNC, entries_BEC, sink_H)
        ctx.seen = reach_BT, window, visible
        keys = upcast(keys_BNC)
        entries = upcast(entries_BEC)
        sink = upcast(sink_H)
        out_BTHC = torch.empty_like(q_BTHC, memory_format=torch.contiguous_format)
        for chunk in chunks(reach_BT, keys.shape[1], entries, window, visible):
            near = keys[:, chunk.near]
            far = chunk.far_values(entries)
            weights = _weights(_scaled(q_BTHC, chunk), near, far, sink, chunk)
            out_BTHC[:, chunk.part] = _sum_values(_rounded(weights, q_BTHC.dtype), near, far)
        return out_BTHC

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTHC):  # type: ignore[no-untyped-def]
        q_BTHC, keys_BNC, entries_BEC, sink_H = ctx.saved_tensors
        reach_BT, window, visible = ctx.seen
        keys = upcast(keys_BNC)
        entries = upcast(entries_BEC)
        sink = upcast(sink_H)
        dq_BTHC = torch.empty_like(q_BTHC, memory_format=torch.contiguous_format)
        dkeys = torch.zeros_like(keys)
        dsink = torch.zeros_like(sink)
        dentries = torch.zeros_like(entries, memory_format=torch.contiguous_format)
        for chunk in chunks(reach_BT, keys.shape[1], entries, window, visible):
            near = keys[:, chunk.near]
            far = chunk.far_values(entries)
            q = _scaled(q_BTHC, chunk)
            grad = upcast(grad_BTHC[:, chunk.part]).contiguous()
            weights = _weights(q, near, far, sink, chunk)
            dweights = _against_values(grad, near, far)
            # the sink has no value, so its weight's gradient is 0, but it is part of the softmax
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dsink += dscores[..., -1].sum(dim=(0, 1))
            dq_BTHC[:, chunk.part] = _sum_values(dscores, near, far).mul_(q.shape[-1] ** -0.5)
            pairs = ((dscores, q), (_rounded(weights, q_BTHC.dtype), grad))
            _add_near(dkeys[:, chunk.near], pairs)
            if far.shape[1]:
                chunk.add_far(dentries, _far_gradient(far, near.shape[1], pairs))
        gradients = dkeys.to(keys_BNC.dtype), dentries.to(entries_BEC.dtype), dsink.to(sink_H.dtype)
        return dq_BTHC, *gradients, None, None, None


def _scaled(q_BTHC: Tensor, chunk: Chunk) -> Tensor:
    return upcast(q_BTHC[:, chunk.part]).contiguous() * q_BTHC.shape[-1] ** -0.5


def _rounded(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights for the product with the values: rounded to the model's dtype."""
    return upcast(weights.to(dtype))


def _weights(q_BQHC: Tensor, near_BMC: Tensor, far_GKC: Tensor, sink_H: Tensor, chunk: Chunk) -> Tensor:
    """Softmax over window, entries and sink, `[B, Q, H, L]`."""
    keys = near_BMC.shape[1]
    entries = far_GKC.shape[1]
    scores = q_BQHC.new_empty(*q_BQHC.shape[:3], keys + entries + 1)
    torch.add(_product(q_BQHC, near_BMC.mT), chunk.near_bias_BQ1M, out=scores[..., :keys])
    if chunk.far_bias_BQ1K is None:
        scores[..., keys:-1] = _product(q_BQHC, far_GKC.mT)
    else:
        torch.add(_product(q_BQHC, far_GKC.mT), chunk.far_bias_BQ1K, out=scores[..., keys:-1])
    scores[..., -1] = sink_H
    return torch.softmax(scores, dim=-1)


def _against_values(grad_BQHC: Tensor, near_BMC: Tensor, far_GKC: Tensor) -> Tensor:
    """Gradient of the weights, `[B, Q, H, L]`; 0 for the sink."""
    none = grad_BQHC.new_zeros(*grad_BQHC.shape[:3], 1)
    return torch.cat([_product(grad_BQHC, near_BMC.mT), _product(grad_BQHC, far_GKC.mT), none], dim=-1)


def _sum_values(weights_BQHL: Tensor, near_BMC: Tensor, far_GKC: Tensor) -> Tensor:
    """`[B, Q, H, C]`."""
    keys = near_BMC.shape[1]
    out = _product(weights_BQHL[..., :keys], near_BMC)
    return out if far_GKC.shape[1] == 0 else out.add_(_product(weights_BQHL[..., keys:-1], far_GKC))


def _product(x_BQHI: Tensor, matrix_GIO: Tensor) -> Tensor:
    """`[B, Q, H, O]`: one matrix for all queries of a row (G = B), or one per query (G = B * Q)."""
    rows, queries, heads, inner = x_BQHI.shape
    groups = matrix_GIO.shape[0]
    return torch.bmm(x_BQHI.view(groups, rows * queries * heads // groups, inner), matrix_GIO).view(
        rows, queries, heads, matrix_GIO.shape[2]
    )


Pairs = tuple[tuple[Tensor, Tensor], ...]
"""Pairs of coefficients `[B, Q, H, L]` and the vectors `[B, Q, H, C]` that they multiply."""


def _add_near(grad_BMC: Tensor, pairs: Pairs) -> None:
    for weights_BQHL, x_BQHC in pairs:
        weights = weights_BQHL[..., : grad_BMC.shape[1]].flatten(1, 2)
        grad_BMC.baddbmm_(weights.mT, x_BQHC.flatten(1, 2))


def _far_gradient(far_GKC: Tensor, keys: int, pairs: Pairs) -> Tensor:
    """Gradient of a chunk's entries, `[G, K, C]`."""
    groups = far_GKC.shape[0]
    total = torch.empty(())
    for number, (weights_BQHL, x_BQHC) in enumerate(pairs):
        weights = weights_BQHL[..., keys:-1].reshape(groups, -1, far_GKC.shape[1])
        x = x_BQHC.view(groups, -1, far_GKC.shape[2])
        total = torch.bmm(weights.mT, x) if number == 0 else total.baddbmm_(weights.mT, x)
    return total
