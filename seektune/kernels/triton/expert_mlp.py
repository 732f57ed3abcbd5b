"""The routed experts of a layer as three grouped products.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts.
"""

from torch import Tensor

from seektune.kernels.eager.expert_mlp import expert_mlp as per_expert
from seektune.kernels.triton.expert_linear import expert_linear, supports_grouped_mm
from seektune.kernels.triton.pairs import PairPlan, add_planned, gather_planned
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
    if not len(tokens_P) or not supports_grouped_mm(x_ND, w1_EFD):
        return per_expert(x_ND, tokens_P, weights_P, w1_EFD, w2_EDF, w3_EFD, counts, limit)
    plan = PairPlan.of(tokens_P, len(x_ND))
    x_PD = gather_planned(x_ND, plan)
    gate = expert_linear(x_PD, w1_EFD, counts)
    up = expert_linear(x_PD, w3_EFD, counts)
    inner = weighted_swiglu(gate, up, weights_P, limit)
    return add_planned(expert_linear(inner, w2_EDF, counts), plan)
