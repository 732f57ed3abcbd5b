"""LM head and cross-entropy with bf16 products on tensor cores, accumulated in fp32.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.linear_cross_entropy import linear_cross_entropy as eager

CHUNK = 2048
"""Tokens whose logits exist at a time: 1.1 GB with the released vocabulary."""


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """See `reference.linear_cross_entropy`; inputs that are not bf16 use `eager`.

    Logits equal the reference's, as products of bf16 are exact in fp32. Their gradients are rounded to bf16 before the
    products of backward, like the gradients of every other product.
    """
    if not hidden_ND.dtype == weight_VD.dtype == torch.bfloat16:
        return eager(hidden_ND, weight_VD, targets_N, weights_N)
    out: Tensor = _Loss.apply(hidden_ND, weight_VD, targets_N, weights_N, torch.is_grad_enabled())
    return out


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N, is_training):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight = (is_training and needs for needs in ctx.needs_input_grad[:2])
        dhidden = torch.empty_like(hidden_ND) if needs_hidden else None
        dweight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros((), device=hidden_ND.device)
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            hidden = hidden_ND[part]
            targets = targets_N[part].unsqueeze(1)
            logits = torch.mm(hidden, weight_VD.T, out_dtype=torch.float32)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            weights = None if weights_N is None else weights_N[part].unsqueeze(1)
            terms = total - logits.gather(1, targets)
            loss += (terms if weights is None else terms * weights).sum()
            if dhidden is None and dweight is None:
                continue
            slope = logits.sub_(total).exp_()
            slope.scatter_add_(1, targets, slope.new_full((), -1.0).expand_as(targets))
            slope = (slope if weights is None else slope.mul_(weights)).bfloat16()
            if dhidden is not None:
                dhidden[part] = slope @ weight_VD
            if dweight is not None:
                dweight += torch.mm(slope.T, hidden, out_dtype=torch.float32)
        ctx.gradients = dhidden, None if dweight is None else dweight.to(weight_VD.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gradients = (None if x is None else x * grad for x in ctx.gradients)
        return *gradients, None, None, None
