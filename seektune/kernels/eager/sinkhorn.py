"""Sinkhorn with a backward that runs the passes again, so that none of them is kept.

Shapes: N matrices, S streams.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Matrices whose passes exist at one time in backward; 20 iterations on four streams then take 1.3 MB."""


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """See `reference.sinkhorn`."""
    out: Tensor = _Sinkhorn.apply(logits, iterations, eps)
    return out


def balanced(logits_SSN: Tensor, iterations: int, eps: float) -> Tensor:
    """The mixing weights of matrices that come last, so that short sums run side by side over long rows."""
    mix = logits_SSN.softmax(dim=1).add_(eps)
    mix.div_(mix.sum(dim=0, keepdim=True).add_(eps))
    for _ in range(iterations - 1):
        mix.div_(mix.sum(dim=1, keepdim=True).add_(eps))
        mix.div_(mix.sum(dim=0, keepdim=True).add_(eps))
    return mix


def balanced_backward(logits_SSN: Tensor, grad_SSN: Tensor, iterations: int, eps: float) -> Tensor:
    """Gradient of the logits from that of `balanced`."""
    first = logits_SSN.softmax(dim=1)
    after = [first + eps]
    sums = []
    dims = [0, *([1, 0] * (iterations - 1))]
    for dim in dims:
        sums.append(after[-1].sum(dim=dim, keepdim=True).add_(eps))
        after.append(after[-1] / sums[-1])
    grad = grad_SSN
    for dim, mix, total in zip(reversed(dims), reversed(after), reversed(sums), strict=False):
        # of x / (sum(x) + eps)
        grad = (grad - (grad * mix).sum(dim=dim, keepdim=True)).div_(total)
    return (grad - (grad * first).sum(dim=1, keepdim=True)).mul_(first)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, iterations, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(logits)
        ctx.numbers = iterations, eps
        return _last(balanced(_first(logits), iterations, eps), logits)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (logits,) = ctx.saved_tensors
        chunks = zip(_first(logits).split(CHUNK, dim=-1), _first(grad).split(CHUNK, dim=-1), strict=True)
        parts = [balanced_backward(part, above, *ctx.numbers) for part, above in chunks]
        return _last(torch.cat(parts, dim=-1), logits), None, None


def _first(mix: Tensor) -> Tensor:
    size = mix.shape[-1]
    return mix.reshape(-1, size, size).permute(1, 2, 0).contiguous()


def _last(mix_SSN: Tensor, like: Tensor) -> Tensor:
    return mix_SSN.permute(2, 0, 1).contiguous().view(like.shape)
