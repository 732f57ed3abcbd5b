"""Linear maps without bias."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """`[..., O]`, in the inputs' dtype."""
    return F.linear(x, weight_OI)


def grouped_linear(x_NGI: Tensor, weight_OI: Tensor, groups: int) -> Tensor:
    """`[..., G, O / G]`: each group of inputs times its own rows of the weight."""
    return torch.einsum("...gi,goi->...go", x_NGI, weight_OI.unflatten(0, (groups, -1)))
