"""Products of tokens that are sorted by expert, all experts at once, by torch's grouped products on tensor cores.

Shapes: P token-expert pairs, E experts, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.expert_linear import expert_linear as one_by_one

ALIGNED = 8
"""Widths that grouped products take are multiples of 16 bytes."""


def expert_linear(x_PI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """See `reference.expert_linear`; what grouped products do not take goes expert by expert."""
    assert sum(counts) == len(x_PI)
    if not takes(x_PI, weight_EOI):
        return one_by_one(x_PI, weight_EOI, counts)
    return F.grouped_mm(x_PI, weight_EOI.mT, offs=ends(counts, x_PI.device))


def takes(x_PI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether grouped products take them: bf16, aligned, and some pairs."""
    odd = weight_EOI.shape[1] % ALIGNED or weight_EOI.shape[2] % ALIGNED
    return x_PI.dtype == weight_EOI.dtype == torch.bfloat16 and len(x_PI) > 0 and not odd


def ends(counts: list[int], device: torch.device) -> Tensor:
    """Where each expert's pairs end, int32 `[E]`."""
    return torch.tensor(counts).cumsum(0).to(device, torch.int32)
