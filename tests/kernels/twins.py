"""Calls an operation's implementations for comparison; needs no pytest, so that benchmarks can use it."""

from typing import Any

import torch
from torch import Tensor

from seektune import kernels
from seektune.kernels import Kernel


def run(function: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, then gradients, with the same upstream gradients for every call."""
    found = function(*arguments)
    outputs = list(found) if isinstance(found, tuple) else [found]
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    learnt = [x for x in outputs if x.requires_grad]
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in learnt]
    return outputs + list(torch.autograd.grad(learnt, leaves, upstream))


def kernel(name: str) -> Kernel:
    found = vars(kernels)[name]
    assert isinstance(found, Kernel)
    return found
