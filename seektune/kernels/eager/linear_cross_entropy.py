"""LM head and cross-entropy with gradients computed in forward, so that the logits are computed once.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.linear_cross_entropy import CHUNK
from seektune.kernels.reference.precision import upcast

BLOCK = 8192
"""Rows of a low-precision head that exist in fp32 at a time."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """See `reference.linear_cross_entropy`. Saves the gradients, `[N, D]` and `[V, D]`, if they may be needed."""
    out: Tensor = _Loss.apply(hidden_ND, weight_VD, targets_N, torch.is_grad_enabled())
    return out


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, is_training):  # type: ignore[no-untyped-def]
        # needs_input_grad is True for parameters even under no_grad, so the grad mode is passed in
        needs_hidden, needs_weight = (is_training and needs for needs in ctx.needs_input_grad[:2])
        dhidden = torch.empty_like(hidden_ND) if needs_hidden else None
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        dweight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        losses = [weight_VD.new_zeros((), dtype=wide)]
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            hidden = upcast(hidden_ND[part])
            targets = targets_N[part].unsqueeze(1)
            logits = _logits(hidden, weight_VD)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            losses.append((total - logits.gather(1, targets)).sum())
            if not (needs_hidden or needs_weight):
                continue
            slope = logits.sub_(total).exp_()
            slope.scatter_add_(1, targets, slope.new_full((), -1.0).expand_as(targets))
            if dhidden is not None:
                dhidden[part] = _through(slope, weight_VD)
            if dweight is not None:
                torch.addmm(dweight, slope.T, hidden, out=dweight)
        ctx.gradients = dhidden, None if dweight is None else dweight.to(weight_VD.dtype)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # `grad` stays fp32: 1 / tokens rounded to bf16 would scale all gradients by the same error
        gradients = (None if x is None else x * grad for x in ctx.gradients)
        return *gradients, None, None


def _logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """`[N, V]`, in hidden's dtype."""
    if weight_VD.dtype == hidden_ND.dtype:
        return hidden_ND @ weight_VD.T
    logits = hidden_ND.new_empty(len(hidden_ND), len(weight_VD))
    for rows, block in _blocks(weight_VD):
        logits[:, rows] = hidden_ND @ block.T
    return logits


def _through(slope_NV: Tensor, weight_VD: Tensor) -> Tensor:
    """The gradient of the head's input, `[N, D]`."""
    if weight_VD.dtype == slope_NV.dtype:
        return slope_NV @ weight_VD
    out = slope_NV.new_zeros(len(slope_NV), weight_VD.shape[1])
    for rows, block in _blocks(weight_VD):
        out.addmm_(slope_NV[:, rows], block)
    return out


def _blocks(weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the head in fp32; all at once would take twice the head's memory."""
    for start in range(0, len(weight_VD), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, upcast(weight_VD[rows])
