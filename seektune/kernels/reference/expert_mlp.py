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


def gathered_expert_mlp(
    x_ND: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    w3_EFD: Tensor,
    limit: float,
) -> Tensor:
    """`expert_mlp` of few tokens, with a copy of each pair's matrices: its shapes do not depend on the choices."""
    pairs = experts_NK.flatten()
    x_PD1 = x_ND.unsqueeze(1).expand(-1, experts_NK.shape[1], -1).flatten(0, 1).unsqueeze(-1)
    gate_PF1 = w1_EFD.index_select(0, pairs) @ x_PD1
    up_PF1 = w3_EFD.index_select(0, pairs) @ x_PD1
    inner_PF1 = weights_NK.flatten()[:, None, None] * clamped_swiglu(gate_PF1, up_PF1, limit)
    out_PD1 = upcast(w2_EDF.index_select(0, pairs) @ inner_PF1.to(x_ND.dtype))
    return out_PD1.view(*experts_NK.shape, -1).sum(dim=1)
