"""Pooling of windows with a backward by `index_add_`, which is faster than the gradient of indexing.

Shapes: B rows, T tokens, E entries, M tokens of a window, C channels of an entry, K channels of values and gates:
C, or 2C where windows overlap; W = M or 2M tokens that an entry pools.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pool_windows(
    values_BTK: Tensor, gates_BTK: Tensor, ape_MK: Tensor, last_BE: Tensor, position_BE: Tensor, overlap: bool
) -> Tensor:
    """See `reference.pool_windows`. Saves values and gates, not the gathered windows."""
    out: Tensor = _Pool.apply(values_BTK, gates_BTK, ape_MK, last_BE, position_BE, overlap)
    return out


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_BTK, gates_BTK, ape_MK, last_BE, position_BE, overlap):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values_BTK, gates_BTK, ape_MK, last_BE, position_BE)
        ctx.overlap = overlap
        values_BEWC, weights_BEWC, _ = _gathered(values_BTK, gates_BTK, ape_MK, last_BE, position_BE, overlap)
        return (weights_BEWC * values_BEWC).sum(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BEC):  # type: ignore[no-untyped-def]
        values_BTK, gates_BTK, ape_MK, last_BE, position_BE = ctx.saved_tensors
        values, weights, tokens_BEM = _gathered(values_BTK, gates_BTK, ape_MK, last_BE, position_BE, ctx.overlap)
        dvalues = weights * grad_BEC.unsqueeze(2)
        dgates = dvalues * (values - (weights * values).sum(dim=2, keepdim=True))
        window = ape_MK.shape[0]
        halves = 2 if ctx.overlap else 1
        dape_MK = torch.cat(dgates.sum(dim=(0, 1)).split(window), dim=1)
        indices = [(tokens_BEM - window).clamp(min=0), tokens_BEM][-halves:]
        length = values_BTK.shape[1]
        gradients = [
            torch.cat(
                [_rows_backward(x, at, length) for x, at in zip(d.split(window, dim=2), indices, strict=True)], dim=-1
            )
            for d in (dvalues, dgates)
        ]
        return *gradients, dape_MK, None, None, None


def _rows_backward(x_BEMC: Tensor, tokens_BEM: Tensor, length: int) -> Tensor:
    """Gradient of `_rows`, `[B, T, C]`: a token is in one window; further uses of its index add zero."""
    rows = x_BEMC.shape[0]
    width = x_BEMC.shape[3]
    out = x_BEMC.new_zeros(rows * length, width)
    return out.index_add_(0, _flat(tokens_BEM, length), x_BEMC.reshape(-1, width)).view(rows, length, width)


def _gathered(values_BTK, gates_BTK, ape_MK, last_BE, position_BE, overlap):  # type: ignore[no-untyped-def]
    """Values and softmax weights of all windows, both `[B, E, W, C]`, and the tokens of each entry's own window."""
    window, channels = ape_MK.shape
    width = channels // 2 if overlap else channels
    tokens_BEM = last_BE.unsqueeze(-1) - torch.arange(window - 1, -1, -1, device=last_BE.device)
    values = _rows(values_BTK[..., -width:], tokens_BEM)
    gates = _rows(gates_BTK[..., -width:], tokens_BEM)
    gates += ape_MK[:, -width:]
    if overlap:
        before = (tokens_BEM - window).clamp(min=0)
        earlier = _rows(gates_BTK[..., :width], before).add_(ape_MK[:, :width])
        earlier.masked_fill_((position_BE == 0)[..., None, None], -torch.inf)
        gates = torch.cat([earlier, gates], dim=2)
        values = torch.cat([_rows(values_BTK[..., :width], before), values], dim=2)
    return values, gates.softmax(dim=2), tokens_BEM


def _rows(x_BTC: Tensor, tokens_BEM: Tensor) -> Tensor:
    """`[B, E, M, C]`."""
    picked = x_BTC.reshape(-1, x_BTC.shape[2]).index_select(0, _flat(tokens_BEM, x_BTC.shape[1]))
    return picked.view(*tokens_BEM.shape, x_BTC.shape[2])


def _flat(tokens_BEM: Tensor, length: int) -> Tensor:
    """Token indices into the flattened rows."""
    return (tokens_BEM + torch.arange(len(tokens_BEM), device=tokens_BEM.device)[:, None, None] * length).flatten()
