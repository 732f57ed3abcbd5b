"""Log-probabilities of given tokens: the sums over the vocabulary in one pass, the gradient of logits in another.

bf16 products run on tensor cores and are accumulated in fp32. Shapes: N tokens, D width, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.head_products import head_logits, through_head
from seektune.kernels.eager.token_logprobs import token_logprobs as eager
from seektune.kernels.reference.precision import upcast

CHUNK = 2048
"""Tokens whose logits exist at a time: 1.1 GB with the released vocabulary."""
BLOCK = 1024
"""Logits that a program reads at a time."""


def token_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """See `reference.token_logprobs`; fp64 uses `eager`.

    Logits equal the reference's, as products of bf16 are exact in fp32. Their gradients are rounded to bf16 before the
    products of backward, like the gradients of every other product.
    """
    if hidden_ND.dtype == torch.float64:
        return eager(hidden_ND, weight_VD, targets_N)
    out: Tensor = _Logprobs.apply(hidden_ND, weight_VD, targets_N.contiguous())
    return out


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):  # type: ignore[no-untyped-def]
        totals_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        logprobs_N = torch.empty_like(totals_N)
        for part in _parts(hidden_ND):
            logits = _logits(hidden_ND[part], weight_VD)
            _score[(len(logits),)](logits, targets_N[part], totals_N[part], logprobs_N[part], logits.shape[1], BLOCK)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, totals_N)
        return logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        hidden_ND, weight_VD, targets_N, totals_N = ctx.saved_tensors
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        grad_N = grad_N.contiguous()
        dhidden = torch.empty_like(hidden_ND) if needs_hidden else None
        dweight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        for part in _parts(hidden_ND):
            hidden = hidden_ND[part]
            logits = _logits(hidden, weight_VD)
            slope = logits if not _tensor_cores(hidden, weight_VD) else torch.empty_like(logits, dtype=torch.bfloat16)
            grid = (len(logits), triton.cdiv(logits.shape[1], BLOCK))
            _slope[grid](logits, targets_N[part], totals_N[part], grad_N[part], slope, logits.shape[1], BLOCK)
            if dhidden is not None:
                dhidden[part] = slope @ weight_VD if slope.dtype == torch.bfloat16 else through_head(slope, weight_VD)
            if dweight is not None:
                dweight += _product(slope.T, hidden)
        return dhidden, None if dweight is None else dweight.to(weight_VD.dtype), None


def _parts(hidden_ND: Tensor) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(hidden_ND), CHUNK)]


def _tensor_cores(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    return hidden_ND.dtype == weight_VD.dtype == torch.bfloat16


def _logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """fp32 `[N, V]`, contiguous."""
    if _tensor_cores(hidden_ND, weight_VD):
        return torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
    return head_logits(upcast(hidden_ND), weight_VD)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product in fp32."""
    if left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ upcast(right)


@triton.jit
def _score(logits, targets, totals, logprobs, vocabulary, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logarithm of a token's sum of exponentials, and its target's log-probability."""
    token = tl.program_id(0)
    row = logits + token.to(tl.int64) * vocabulary
    highest = tl.load(row)
    total = highest * 0.0
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(row + column, mask=column < vocabulary, other=-float("inf"))
        higher = tl.maximum(highest, tl.max(x, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), axis=0)
        highest = higher
    total = highest + tl.log(total)
    tl.store(totals + token, total)
    tl.store(logprobs + token, tl.load(row + tl.load(targets + token)) - total)


@triton.jit
def _slope(logits, targets, totals, grads, slope, vocabulary, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of a block of a token's logits."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = token.to(tl.int64) * vocabulary + column
    inside = column < vocabulary
    grad = tl.load(grads + token)
    share = tl.exp(tl.load(logits + at, mask=inside, other=0.0) - tl.load(totals + token))
    found = grad * (tl.where(column == tl.load(targets + token), 1.0, 0.0) - share)
    tl.store(slope + at, found.to(slope.dtype.element_ty), mask=inside)
