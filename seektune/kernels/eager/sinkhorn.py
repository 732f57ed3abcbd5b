"""Sinkhorn with a backward that recomputes the passes instead of saving them.

Shapes: N matrices, S streams.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Matrices whose passes exist at a time in backward; 20 iterations on four streams take 1.3 MB."""


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """See `reference.sinkhorn`."""
    out: Tensor = _Sinkhorn.apply(logits, iterations, eps)
    return out


def normalize(logits_SSN: Tensor, iterations: int, eps: float) -> Tensor:
    """Sinkhorn on `[S, S, N]`: matrices come last, so that the short sums are vectorized over them."""
    mix = logits_SSN.softmax(dim=1).add_(eps)
    mix.div_(mix.sum(dim=0, keepdim=True).add_(eps))
    for _ in range(iterations - 1):
        mix.div_(mix.sum(dim=1, keepdim=True).add_(eps))
        mix.div_(mix.sum(dim=0, keepdim=True).add_(eps))
    return mix


def normalize_backward(logits_SSN: Tensor, grad_SSN: Tensor, iterations: int, eps: float) -> Tensor:
    """Gradient of the logits, from the gradient of `normalize`'s result."""
    first = logits_SSN.softmax(dim=1)
    after = [first + eps]
    sums = []
    dims = [0, *([1, 0] * (iterations - 1))]
    for dim in dims:
        sums.append(after[-1].sum(dim=dim, keepdim=True).add_(eps))
        after.append(after[-1] / sums[-1])
    grad = grad_SSN
    for dim, mix, total in zip(reversed(dims), reversed(after), reversed(sums), strict=False):
        # gradient of x / (sum(x) + eps)
        grad = (grad - (grad * mix).sum(dim=dim, keepdim=True)).div_(total)
    return (grad - (grad * first).sum(dim=1, keepdim=True)).mul_(first)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, iterations, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(logits)
        ctx.numbers = iterations, eps
        return _matrices_first(normalize(_matrices_last(logits), iterations, eps), logits)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (logits,) = ctx.saved_tensors
        chunks = zip(
            _matrices_last(logits).split(CHUNK, dim=-1), _matrices_last(grad).split(CHUNK, dim=-1), strict=True
        )
        parts = [normalize_backward(part, above, *ctx.numbers) for part, above in chunks]
        return _matrices_first(torch.cat(parts, dim=-1), logits), None, None


def _matrices_last(mix: Tensor) -> Tensor:
    size = mix.shape[-1]
    return mix.reshape(-1, size, size).permute(1, 2, 0).contiguous()


def _matrices_first(mix_SSN: Tensor, like: Tensor) -> Tensor:
    return mix_SSN.permute(2, 0, 1).contiguous().view(like.shape)
