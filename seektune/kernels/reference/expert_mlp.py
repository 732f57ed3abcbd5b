"""The routed experts of a layer, applied to the tokens that chose them.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.expert_linear import expert_linear
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.swiglu import clamped_swiglu


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
    """Sum of each token's expert outputs, fp32 `[N, D]` (official `Expert`).

    Pair p applies its expert to row `tokens_P[p]`: the first `counts[0]` pairs use expert 0, and so on. The pair's
    weight is applied before `w2`. Outputs are rounded to the dtype of `x` and added in fp32, in the order of pairs.
    """
    x_PD = x_ND[tokens_P]
    gate = expert_linear(x_PD, w1_EFD, counts)
    up = expert_linear(x_PD, w3_EFD, counts)
    inner = weights_P[:, None] * clamped_swiglu(gate, up, limit)
    out_PD = upcast(expert_linear(inner.to(x_ND.dtype), w2_EDF, counts))
    return torch.zeros(x_ND.shape, dtype=out_PD.dtype, device=x_ND.device).index_add(0, tokens_P, out_PD)
