"""Routed experts one after the other: tokens are gathered, and outputs added, while they are in the cache.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.swiglu import activate, activate_with_slopes
from seektune.kernels.reference.precision import upcast

ROWS = 1024
"""Pairs of one expert that are computed at a time."""


def expert_mlp(
    x_ND: Tensor,
    tokens_P: Tensor,
    weights_P: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    w3_EFD: Tensor,
    counts: list[int],
    limit: float,
) -> Tensor:
    """See `reference.expert_mlp`. Saves the tokens once, not per pair, and each pair's gate and up.

    The tokens of an expert are distinct, so its additions do not collide, and experts add in order. The result is
    deterministic without atomics.
    """
    out: Tensor = _ExpertMLP.apply(x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, counts, limit)
    return out


def _runs(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Experts and slices of their pairs, at most `ROWS` at a time."""
    start = 0
    for expert, count in enumerate(counts):
        for first in range(start, start + count, ROWS):
            yield expert, slice(first, min(first + ROWS, start + count))
        start += count


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, counts, limit):  # type: ignore[no-untyped-def]
        assert sum(counts) == len(tokens_P)
        gate_PF = x_ND.new_empty(len(tokens_P), w1_EFD.shape[1])
        up_PF = torch.empty_like(gate_PF)
        ctx.save_for_backward(x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, gate_PF, up_PF)
        ctx.plan = counts, limit
        out_ND = torch.zeros_like(x_ND, dtype=upcast(x_ND[:0]).dtype)
        for expert, pairs in _runs(counts):
            x = x_ND.index_select(0, tokens_P[pairs])
            gate = torch.mm(x, w1_EFD[expert].T, out=gate_PF[pairs])
            up = torch.mm(x, w3_EFD[expert].T, out=up_PF[pairs])
            inner = activate(upcast(gate), upcast(up), limit).mul_(weights_P[pairs].unsqueeze(1))
            out = F.linear(inner.to(x.dtype), w2_EDF[expert])
            out_ND.index_add_(0, tokens_P[pairs], upcast(out))
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):  # type: ignore[no-untyped-def]
        x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, gate_PF, up_PF = ctx.saved_tensors
        counts, limit = ctx.plan
        dx_ND = torch.zeros_like(grad_ND)
        dweights_P = torch.empty_like(weights_P)
        trained = any(ctx.needs_input_grad[3:6])
        dw1, dw2, dw3 = (_gradient(w, counts) if trained else None for w in (w1_EFD, w2_EDF, w3_EFD))
        low = trained and x_ND.dtype != grad_ND.dtype and max(counts, default=0) > ROWS
        buffers = [torch.empty_like(w[0], dtype=grad_ND.dtype) if low else None for w in (w1_EFD, w2_EDF, w3_EFD)]
        started = set()
        for expert, pairs in _runs(counts):
            tokens = tokens_P[pairs]
            weight = weights_P[pairs].unsqueeze(1)
            x = x_ND.index_select(0, tokens)
            dy = grad_ND.index_select(0, tokens).to(x_ND.dtype)
            inner, dgate, dup = activate_with_slopes(upcast(gate_PF[pairs]), upcast(up_PF[pairs]), limit)
            dinner = upcast(dy @ w2_EDF[expert])
            dweights_P[pairs] = (dinner * inner).sum(dim=1)
            dinner.mul_(weight)
            dgate = dgate.mul_(dinner).to(x.dtype)
            dup = dup.mul_(dinner).to(x.dtype)
            dx_ND.index_add_(0, tokens, upcast(torch.addmm(dup @ w3_EFD[expert], dgate, w1_EFD[expert])))
            if trained:
                again = expert in started
                started.add(expert)
                _product(dw1[expert], buffers[0], dgate, x, again)
                _product(dw2[expert], buffers[1], dy, inner.mul_(weight).to(x.dtype), again)
                _product(dw3[expert], buffers[2], dup, x, again)
        return dx_ND.to(x_ND.dtype), None, dweights_P, dw1, dw2, dw3, None, None


def _gradient(weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """Uninitialized memory for the experts' gradients; zero for experts without tokens."""
    out = torch.empty_like(weight_EOI)
    for expert, count in enumerate(counts):
        if count == 0:
            out[expert] = 0
    return out


def _product(out_OI: Tensor, buffer_OI: Tensor | None, dy_PO: Tensor, x_PI: Tensor, again: bool) -> None:
    """Write `dy.T @ x`, or add it if `again`; with a `buffer`, low-precision gradients are summed there in fp32."""
    torch.addmm(out_OI, dy_PO.T, x_PI, beta=float(again and buffer_OI is None), out=out_OI)
    if buffer_OI is None:
        return
    if again:
        out_OI.copy_(buffer_OI.add_(out_OI))
    else:
        buffer_OI.copy_(out_OI)
