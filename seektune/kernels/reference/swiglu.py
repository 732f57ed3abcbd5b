"""The activation of the experts."""

import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.precision import upcast


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """`silu(min(gate, limit)) * clip(up, -limit, limit)` in fp32 for equal shapes; clamped elements get no gradient.

    Official `Expert.forward`; the shared expert has the same clamp.
    """
    return F.silu(upcast(gate).clamp(max=limit)) * upcast(up).clamp(-limit, limit)
