"""Log-probabilities of given tokens from logits in tiles, summed up in fp64.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor

from seektune.kernels.eager.token_logprobs import TokenLogprobsFunction
from seektune.kernels.invariant.tiles import TILE, tiled
from seektune.kernels.reference.precision import upcast


def token_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """See `reference.token_logprobs`."""
    out: Tensor = _DoubleLogprobs.apply(hidden_ND, weight_VD, targets_N)
    return out


class _DoubleLogprobs(TokenLogprobsFunction):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):  # type: ignore[no-untyped-def]
        weight = upcast(weight_VD)
        logprobs_N = upcast(hidden_ND[:, :0]).sum(dim=1)
        totals_N = torch.empty_like(logprobs_N)
        for start in range(0, len(hidden_ND), TILE):
            part = slice(start, start + TILE)
            logits = tiled(upcast(hidden_ND[part]), weight).double()
            totals = logits.logsumexp(dim=1)
            logprobs_N[part] = logits.gather(1, targets_N[part].unsqueeze(1)).squeeze(1) - totals
            totals_N[part] = totals
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, totals_N)
        return logprobs_N
