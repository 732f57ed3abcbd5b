"""The routed experts of a layer as three grouped products.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts.
"""

import torch
from torch import Tensor

from seektune.kernels.eager.expert_mlp import expert_mlp as per_expert
from seektune.kernels.reference.precision import upcast
from seektune.kernels.triton.expert_linear import expert_linear, supports_grouped_mm
from seektune.kernels.triton.swiglu import weighted_swiglu


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
    """See `reference.expert_mlp`; inputs that `grouped_mm` does not support are computed expert by expert."""
    x_PD = x_ND[tokens_P]
    if not supports_grouped_mm(x_PD, w1_EFD):
        return per_expert(x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, counts, limit)
    gate = expert_linear(x_PD, w1_EFD, counts)
    up = expert_linear(x_PD, w3_EFD, counts)
    inner = weighted_swiglu(gate, up, weights_P, limit)
    out_PD = upcast(expert_linear(inner, w2_EDF, counts))
    # index_put sorts before it adds and uses no atomics, so the result is deterministic
    return torch.zeros_like(x_ND, dtype=out_PD.dtype).index_put((tokens_P,), out_PD, accumulate=True)
