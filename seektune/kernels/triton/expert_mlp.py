"""The routed experts of a layer as three products over all of them.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts.
"""

import torch
from torch import Tensor

from seektune.kernels.eager.expert_mlp import expert_mlp as one_by_one
from seektune.kernels.reference.precision import upcast
from seektune.kernels.triton.expert_linear import expert_linear, takes
from seektune.kernels.triton.swiglu import clamped_swiglu


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
    """See `reference.expert_mlp`; what grouped products do not take goes expert by expert."""
    x_PD = x_ND[tokens_P]
    if not takes(x_PD, w1_EFD):
        return one_by_one(x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, counts, limit)
    gate = expert_linear(x_PD, w1_EFD, counts)
    up = expert_linear(x_PD, w3_EFD, counts)
    inner = weights_P[:, None] * clamped_swiglu(gate, up, limit)
    out_PD = upcast(expert_linear(inner.to(x_ND.dtype), w2_EDF, counts))
    # sorted before it is added, not atomic: the same every time
    return torch.zeros_like(x_ND, dtype=out_PD.dtype).index_put((tokens_P,), out_PD, accumulate=True)
