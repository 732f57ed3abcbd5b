"""Products of tokens sorted by expert, all experts at once, with torch's `grouped_mm` on tensor cores.

Shapes: P token-expert pairs, E experts, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.expert_linear import expert_linear as per_expert

ALIGNED = 8
"""`grouped_mm` needs widths that are multiples of 16 bytes."""


def expert_linear(x_PI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """See `reference.expert_linear`; inputs that `grouped_mm` does not support are computed expert by expert."""
    assert sum(counts) == len(x_PI)
    if not supports_grouped_mm(x_PI, weight_EOI):
        return per_expert(x_PI, weight_EOI, counts)
    return F.grouped_mm(x_PI, weight_EOI.mT, offs=ends(counts, x_PI.device))


def supports_grouped_mm(x_PI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether `grouped_mm` supports the inputs: bf16, aligned widths, and at least one pair."""
    unaligned = weight_EOI.shape[1] % ALIGNED or weight_EOI.shape[2] % ALIGNED
    return x_PI.dtype == weight_EOI.dtype == torch.bfloat16 and len(x_PI) > 0 and not unaligned


def ends(counts: list[int], device: torch.device) -> Tensor:
    """The end of each expert's pairs, int32 `[E]`."""
    return copied(torch.tensor(counts).cumsum(0, dtype=torch.int32), device)


def copied(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on a device; from pinned memory, so that the host does not wait for a GPU."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
