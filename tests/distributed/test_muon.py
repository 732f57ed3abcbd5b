"""Muon on sharded parameters of odd shapes moves them as on one process; rounds and replicas do not matter."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from seektune.train.optim.muon import MATRICES, Muon

from .workers import run_workers

PARAMETERS = [
    ((7, 10), 1, 0),
    ((24, 6), 3, 0),
    ((5, 8, 12), 1, 1),
    ((3, 5, 12), 1, 2),
    ((7, 6, 4), 1, 0),
    ((2, 9), 1, 0),
]
"""Shape, matrices of the rows, and the dim that is sharded; some processes have no rows of the last."""
STEPS = 3


def made(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(parameters: list[nn.Parameter], spread, dtype: torch.dtype, elements: int, master: str) -> list[torch.Tensor]:
    groups = [{"params": [p], MATRICES: PARAMETERS[n][1], "weight_decay": 0.1} for n, p in enumerate(parameters)]
    groups.append({"params": [nn.Parameter(torch.ones(3))], MATRICES: 0})

    def mesh_of(parameter: torch.Tensor) -> DeviceMesh | None:
        return parameter.device_mesh if isinstance(parameter, DTensor) else None

    optimizer = Muon(groups, lr=1e-2, master=master, mesh_of=mesh_of, round_elements=elements)
    for step in range(STEPS):
        for number, parameter in enumerate(parameters):
            if (step, number) != (1, 3):  # in this step it has no gradient
                parameter.grad = spread(made(100 * step + number, PARAMETERS[number][0]).to(dtype), number)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in parameters]


def alone(dtype: torch.dtype) -> list[torch.Tensor]:
    parameters = [nn.Parameter(made(number, each[0]).to(dtype)) for number, each in enumerate(PARAMETERS)]
    return moved(parameters, lambda x, number: x, dtype, 2**20, "fp32")


def spread_out(copies: int, dtype: torch.dtype, elements: int) -> list[np.ndarray]:
    world = dist.get_world_size()
    sizes, names = ((copies, world // copies), ("replicate", "shard")) if copies > 1 else ((world,), ("shard",))
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)

    def spread(x: torch.Tensor, number: int) -> DTensor:
        return distribute_tensor(x, mesh, [*[Replicate()] * (copies > 1), Shard(PARAMETERS[number][2])])

    parameters = [
        nn.Parameter(spread(made(number, each[0]).to(dtype), number)) for number, each in enumerate(PARAMETERS)
    ]
    return [x.full_tensor().float().numpy() for x in moved(parameters, spread, dtype, elements, "fp32")]


@pytest.mark.parametrize(
    ("world", "copies", "dtype", "elements"),
    [
        (4, 2, torch.float32, 100),
        pytest.param(3, 1, torch.float32, 2**20, marks=pytest.mark.slow),
        pytest.param(3, 3, torch.bfloat16, 100, marks=pytest.mark.slow),
    ],
)
def test_sharded_matrices_move_as_whole_ones(world: int, copies: int, dtype: torch.dtype, elements: int):
    wanted = [x.float().numpy() for x in alone(dtype)]
    everywhere = run_workers(world, spread_out, copies, dtype, elements)
    for found in everywhere:
        for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            assert np.array_equal(ours, everywhere[0][number]), "copies differ"
            bound = 1e-6 if dtype == torch.float32 else 1e-2
            assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < bound, PARAMETERS[number]
