"""LM head and cross-entropy with gradients computed in forward, so that the logits are computed once.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.head_products import head_logits, through_head
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.token_logprobs import CHUNK


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """See `reference.linear_cross_entropy`. Saves the gradients, `[N, D]` and `[V, D]`, if they may be needed."""
    out: Tensor = _Loss.apply(hidden_ND, weight_VD, targets_N, weights_N, torch.is_grad_enabled())
    return out


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N, is_training):  # type: ignore[no-untyped-def]
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
            weights = None if weights_N is None else weights_N[part].unsqueeze(1)
            logits = head_logits(hidden, weight_VD)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            terms = total - logits.gather(1, targets)
            losses.append((terms if weights is None else terms * weights).sum())
            if not (needs_hidden or needs_weight):
                continue
            slope = logits.sub_(total).exp_()
            slope.scatter_add_(1, targets, slope.new_full((), -1.0).expand_as(targets))
            if weights is not None:
                slope *= weights
            if dhidden is not None:
                dhidden[part] = through_head(slope, weight_VD)
            if dweight is not None:
                torch.addmm(dweight, slope.T, hidden, out=dweight)
        ctx.gradients = dhidden, None if dweight is None else dweight.to(weight_VD.dtype)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # `grad` stays fp32: 1 / tokens rounded to bf16 would scale all gradients by the same error
        gradients = (None if x is None else x * grad for x in ctx.gradients)
        return *gradients, None, None, None
