"""Gradients between backward and the optimizer: fp32 accumulation, norm over all processes, clipping."""

from collections.abc import Iterable, Mapping
from math import isfinite, sqrt

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import local, replicas_of

NAMED = 5
"""Parameters that an error message lists."""


class NotFiniteError(FloatingPointError, RuntimeError):
    """A loss or gradient is infinite or NaN."""


def accumulate_in_fp32(parameters: Iterable[Tensor]) -> None:
    """Accumulate the gradients of bf16 parameters in fp32, so that late micro-batches of a large step are not lost.

    FSDP2 adds up and sums over processes in fp32 by itself; it then rounds to the dtype of the parameter.
    """
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.grad_dtype = torch.float32


def gradient_norm(parameters: Iterable[tuple[str, Tensor]], mesh: Mesh) -> float:
    """Norm of the gradient over all parameters of all processes; fp32 per parameter, fp64 across.

    Raises:
        NotFiniteError: it is not finite, on every process; the message names the first parameters affected.
    """
    norms = shard_norms(parameters, mesh)
    square = float(squared_norm(norms, mesh))
    if not isfinite(square):
        here = [name for name, norm in norms.items() if not isfinite(float(norm))]
        faulty = list(dict.fromkeys(name for each in mesh.ranks.each(lambda: here) for name in each))
        rest = f" and {len(faulty) - NAMED} more" if len(faulty) > NAMED else ""
        raise NotFiniteError(f"the gradient is not finite in {', '.join(faulty[:NAMED])}{rest}")
    return sqrt(square)


def shard_norms(parameters: Iterable[tuple[str, Tensor]], mesh: Mesh) -> dict[str, Tensor]:
    """Norm of this process's shard of each gradient, fp64 scalars; the squares of all shards add up to the whole's."""
    named = [(name, local(p.grad), replicas_of(name, p, mesh)) for name, p in parameters if p.grad is not None]
    return {
        name: torch.linalg.vector_norm(gradient, dtype=torch.float32).double() / sqrt(copies)
        for name, gradient, copies in named
    }


def squared_norm(norms: Mapping[str, Tensor], mesh: Mesh) -> Tensor:
    """The square of the whole gradient's norm, fp64, from `shard_norms` of all processes."""
    squares = [norm**2 for norm in norms.values()]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=mesh.device)
    return mesh.sum(total)


@torch.no_grad()
def clip(parameters: Iterable[Tensor], norm: float, max_norm: float | None) -> None:
    """Scale all gradients so that their common norm is at most `max_norm`; None leaves them."""
    if max_norm is None or norm <= max_norm:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(max_norm / norm)
