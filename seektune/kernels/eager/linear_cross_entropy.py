"""Head and cross-entropy whose gradients are computed with the loss, so that the logits are made once.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.linear_cross_entropy import CHUNK
from seektune.kernels.reference.precision import upcast

BLOCK = 8192
"""Rows of a low-precision head that exist in fp32 at one time."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """See `reference.vocabulary_loss`. Where a gradient may be asked for it is kept, `[N, D]` and `[V, D]`."""
    out: Tensor = _Loss.apply(hidden_ND, weight_VD, targets_N, torch.is_grad_enabled())
    return out


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, is_training):  # type: ignore[no-untyped-def]
        # in here torch says of every parameter that it needs a gradient, also where nobody can ask for one
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
        # `grad` in its own precision: one over the number of tokens, rounded to bf16, would shift every gradient alike
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
    """The gradient of what the head reads, `[N, D]`."""
    if weight_VD.dtype == slope_NV.dtype:
        return slope_NV @ weight_VD
    out = slope_NV.new_zeros(len(slope_NV), weight_VD.shape[1])
    for rows, block in _blocks(weight_VD):
        out.addmm_(slope_NV[:, rows], block)
    return out


def _blocks(weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the head with their values in fp32; all at once they would be twice the head."""
    for start in range(0, len(weight_VD), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, upcast(weight_VD[rows])
