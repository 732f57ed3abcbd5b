"""The activation of the experts.

Shapes: P token-expert pairs, F expert width.
"""

import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.precision import upcast


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`silu(min(gate, limit)) * clip(up, -limit, limit)` in fp32 for equal shapes; clamped elements get no gradient.

    Official `Expert.forward`; the shared expert has the same clamp.
    """
    return F.silu(upcast(gate).clamp(max=limit)) * upcast(up).clamp(-limit, limit)


def weighted_swiglu(gate_PF: Tensor, up_PF: Tensor, weights_P: Tensor, limit: float) -> Tensor:
    """`clamped_swiglu` times the weight of each pair in fp32, rounded once to the dtype of `gate`."""
    return (weights_P[:, None] * clamped_swiglu(gate_PF, up_PF, limit)).to(gate_PF.dtype)
