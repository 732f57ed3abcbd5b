"""Log-probabilities of given tokens whose gradient recomputes the logits of a chunk from what forward has summed up.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.head_products import HeadGradients, head_logits
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.token_logprobs import CHUNK


def token_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """See `reference.token_logprobs`. Saves its inputs and a number for each token."""
    out: Tensor = TokenLogprobsFunction.apply(hidden_ND, weight_VD, targets_N)
    return out


class TokenLogprobsFunction(torch.autograd.Function):
    """Twins differ in their forward only."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):  # type: ignore[no-untyped-def]
        """Saves the sum of each token's exponentials, as a logarithm."""
        totals_N = upcast(hidden_ND[:, :0]).sum(dim=1)
        logprobs_N = torch.empty_like(totals_N)
        for part in _parts(hidden_ND):
            logits = head_logits(upcast(hidden_ND[part]), weight_VD)
            largest = logits.amax(dim=1, keepdim=True)
            # relative to the largest, so that the log-probability of a likely token has the precision of its size
            chosen = logits.sub_(largest).gather(1, targets_N[part].unsqueeze(1)).squeeze(1)
            rest = logits.exp_().sum(dim=1).log()
            logprobs_N[part] = chosen - rest
            totals_N[part] = largest.squeeze(1) + rest
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, totals_N)
        return logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        """Recomputes the logits of a chunk."""
        hidden_ND, weight_VD, targets_N, totals_N = ctx.saved_tensors
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        gradients = HeadGradients(hidden_ND, weight_VD, needs_hidden, needs_weight)
        for part in _parts(hidden_ND):
            hidden = upcast(hidden_ND[part])
            grad = grad_N[part].unsqueeze(1)
            slope = head_logits(hidden, weight_VD).sub_(totals_N[part].unsqueeze(1)).exp_().mul_(-grad)
            slope.scatter_add_(1, targets_N[part].unsqueeze(1), grad)
            gradients.add(part, slope, hidden)
        return *gradients.found(), None


def _parts(hidden_ND: Tensor) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(hidden_ND), CHUNK)]
