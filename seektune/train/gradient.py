"""Gradients between backward and the optimizer: kept in fp32, measured, found faulty, scaled down."""

from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor, nn

NAMED = 5
"""Parameters that an error message lists."""


class NotFiniteError(FloatingPointError, RuntimeError):
    """A loss or gradient is infinite or not a number; the run cannot go on."""


def accumulate_in_fp32(model: nn.Module) -> None:
    """Let the gradients of bf16 parameters add up in fp32, where a large step's last micro-batches are not lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32


def gradient_norm(model: nn.Module) -> float:
    """Norm of the gradient over all parameters; fp32 per parameter, fp64 across.

    Raises:
        NotFiniteError: it is not finite; the sentence names the first parameters to blame.
    """
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for _, gradient in named]
    if not norms:
        return 0.0
    total = float(torch.stack(norms).double().norm())
    if not isfinite(total):
        faulty = [name for (name, _), norm in zip(named, norms, strict=True) if not isfinite(float(norm))]
        rest = f" and {len(faulty) - NAMED} more" if len(faulty) > NAMED else ""
        raise NotFiniteError(f"the gradient is not finite in {', '.join(faulty[:NAMED])}{rest}")
    return total


@torch.no_grad()
def clip(parameters: Iterable[Tensor], norm: float, max_norm: float | None) -> None:
    """Scale all gradients so that their common norm is at most `max_norm`; None leaves them."""
    if max_norm is None or norm <= max_norm:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(max_norm / norm)
