"""Routed experts, and low-bit linear layers, in tiles.

Shapes: N tokens, P token-expert pairs sorted by expert, D width, F expert width, E experts, I inputs, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seektune.kernels import eager
from seektune.kernels.invariant.double import in_double
from seektune.kernels.invariant.tiles import grouped_linear, linear
from seektune.kernels.reference.lowbit_linear import lowbit_expert_product, lowbit_product
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.quantize import ACTIVATION_GROUP, fake_quantize_fp8


def expert_linear(x_NI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """See `reference.expert_linear`."""
    return torch.cat([linear(*each) for each in zip(x_NI.split(counts), weight_EOI.unbind(), strict=True)])


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
    """See `reference.expert_mlp`; outputs are added in the order of experts."""
    x_PD = x_ND[tokens_P]
    gate = upcast(expert_linear(x_PD, w1_EFD, counts))
    up = upcast(expert_linear(x_PD, w3_EFD, counts))
    inner = weights_P[:, None] * in_double(eager.clamped_swiglu)(gate, up, limit)
    out_PD = upcast(expert_linear(inner.to(x_ND.dtype), w2_EDF, counts))
    return torch.zeros(x_ND.shape, dtype=out_PD.dtype, device=x_ND.device).index_add(0, tokens_P, out_PD)


def lowbit_linear(x_NI: Tensor, weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """See `reference.lowbit_linear`."""
    return lowbit_product(x_NI, weight, scale, groups, linear, grouped_linear)


def lowbit_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """See `reference.lowbit_expert_linear`."""
    return lowbit_expert_product(x_NI, weights, scales, counts, linear)


def fp8_linear(x_NI: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """See `reference.fp8_linear`; rows are rounded alone."""
    return lowbit_linear(fake_quantize_fp8(x_NI, ACTIVATION_GROUP), weight, scale)


def fp8_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """See `reference.fp8_expert_linear`."""
    return lowbit_expert_linear(fake_quantize_fp8(x_NI, ACTIVATION_GROUP), weights, scales, counts)


def weighted_swiglu(gate_PF: Tensor, up_PF: Tensor, weights_P: Tensor, limit: float) -> Tensor:
    """See `reference.weighted_swiglu`."""
    inner = in_double(eager.clamped_swiglu)(gate_PF, up_PF, limit)
    return (weights_P[:, None] * inner).to(gate_PF.dtype)
