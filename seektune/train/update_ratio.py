"""Update-to-weight ratios: how far a step moves the weights, relative to their size."""

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from torch import Tensor

from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import EXPERTS, local, replicas_of

KINDS = {"experts": EXPERTS, "attention": ".attn.", "embedding": "embed.", "head": "head."}
"""Part of the names of parameters, by kind; the first that fits. The rest is `other`."""
NAMES = (*KINDS, "other")


def kind_of(name: str) -> str:
    """The kind of a parameter."""
    return next((kind for kind, part in KINDS.items() if part in name), "other")


@torch.no_grad()
def copies(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies of the shards of trained parameters on this process, by name."""
    return {name: local(parameter).detach().clone() for name, parameter in parameters if parameter.requires_grad}


@torch.no_grad()
def update_ratios(
    before: Mapping[str, Tensor], parameters: Iterable[tuple[str, Tensor]], mesh: Mesh
) -> dict[str, float]:
    """`|w_new - w_old| / |w_old|` over all parameters of each kind, by `update_ratio_KIND`; collective.

    Kinds whose weights are all 0, or that the model has not, are left out.
    """
    squares = torch.zeros(len(NAMES), 2, dtype=torch.float64, device=mesh.device)
    for name, parameter in parameters:
        if name in before:
            old = before[name].float()
            both = torch.stack([(local(parameter).float() - old).square().sum(), old.square().sum()])
            squares[NAMES.index(kind_of(name))] += both.double() / replicas_of(name, parameter, mesh)
    total = mesh.sum(squares).tolist()
    return {
        f"update_ratio_{kind}": sqrt(moved / size) for kind, (moved, size) in zip(NAMES, total, strict=True) if size
    }
