"""LM head and cross-entropy with gradients computed in forward, so that the logits are computed once.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.head_products import HeadGradients, head_logits
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.token_logprobs import CHUNK


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """See `reference.linear_cross_entropy`. Saves the gradients, `[N, D]` and `[V, D]`, if they may be needed."""
    loss, _ = linear_z_loss(hidden_ND, weight_VD, targets_N, weights_N, 0.0)
    return loss


def linear_z_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None, z_weight: float
) -> tuple[Tensor, Tensor]:
    """See `reference.linear_z_loss`; the logits are computed once for both terms."""
    loss, squared = _Loss.apply(hidden_ND, weight_VD, targets_N, weights_N, z_weight, torch.is_grad_enabled())
    return loss, squared


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N, z_weight, is_training):  # type: ignore[no-untyped-def]
        # needs_input_grad is True for parameters even under no_grad, so the grad mode is passed in
        needs_hidden, needs_weight = (is_training and needs for needs in ctx.needs_input_grad[:2])
        gradients = HeadGradients(hidden_ND, weight_VD, needs_hidden, needs_weight)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        losses = [weight_VD.new_zeros((), dtype=wide)]
        squares = [weight_VD.new_zeros((), dtype=wide)]
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            hidden = upcast(hidden_ND[part])
            targets = targets_N[part].unsqueeze(1)
            weights = None if weights_N is None else weights_N[part].unsqueeze(1)
            logits = head_logits(hidden, weight_VD)
            total = torch.logsumexp(logits, dim=1, keepdim=True)
            terms = total - logits.gather(1, targets)
            losses.append((terms if weights is None else terms * weights).sum())
            if z_weight:
                squared = total**2
                squares.append((squared if weights is None else squared * weights).sum())
            if not gradients.needed:
                continue
            slope = logits.sub_(total).exp_()
            if z_weight:
                slope *= 1 + 2 * z_weight * total
            slope.scatter_add_(1, targets, slope.new_full((), -1.0).expand_as(targets))
            if weights is not None:
                slope *= weights
            gradients.add(part, slope, hidden)
        ctx.gradients = gradients.found()
        squared = torch.stack(squares).sum()
        ctx.mark_non_differentiable(squared)
        loss = torch.stack(losses).sum()
        return (loss + z_weight * squared if z_weight else loss), squared

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        # `grad` stays fp32: 1 / tokens rounded to bf16 would scale all gradients by the same error
        gradients = (None if x is None else x * grad for x in ctx.gradients)
        return *gradients, None, None, None, None
