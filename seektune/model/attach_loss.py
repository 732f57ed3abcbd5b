"""Losses inside of a model, whose gradient begins where they are attached and not at the model's output."""

from collections.abc import Sequence

import torch
from torch import Tensor


def attach_loss(x: Tensor, loss: Tensor) -> Tensor:
    """A copy of `x`; in backward the scalar `loss` gets the gradient 1, as if added to the loss of the whole step."""
    out: Tensor = _AttachLoss.apply(x, loss)
    return out


def with_gradients(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The scalar `loss`, whose backward gives each input its gradient, as for a gradient of 1 of the loss."""
    out: Tensor = _WithGradients.apply(loss, gradients, *inputs)
    return out


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, gradients, *inputs):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return None, None, *ctx.saved_tensors


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loss):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(loss.detach())
        # a copy, because the schedules of pipelines detach what a stage gives in place, which a view does not allow
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss)
