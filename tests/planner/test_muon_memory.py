"""What Muon holds while it orthogonalises, counted in steps of real optimizers on meta tensors: within the plan."""

import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from seektune.parallel.placement import local
from seektune.parallel.simulate.fake_backend import fake_process_group, meta_tensors
from seektune.planner.expressions import evaluate
from seektune.planner.muon_formulas import MUON, WORK
from seektune.train.optim.muon import MATRICES, Muon
from seektune.train.optim.newton_schulz import iteration_flops
from tests.places import ROOT

Live = runpy.run_path(str(ROOT / "bench" / "live.py"))["Live"]
ROUND = 2**18
Make = Callable[[tuple[int, ...]], Tensor]


@contextmanager
def parameters_of(shards: int) -> Iterator[tuple[Make, DeviceMesh | None]]:
    """Makes a bf16 tensor: whole, or this process's shard of one."""
    if shards == 1:
        yield lambda shape: torch.zeros(shape, dtype=torch.bfloat16, device="meta"), None
        return
    with fake_process_group(0, shards):
        mesh = init_device_mesh("cpu", (1, shards), mesh_dim_names=("replicate", "shard"))

        def shard(shape: tuple[int, ...]) -> Tensor:
            piece = torch.zeros(shape[0] // shards, *shape[1:], dtype=torch.bfloat16)
            return DTensor.from_local(piece, mesh, [Replicate(), Shard(0)], run_check=False)

        with meta_tensors(lambda *collective: None):
            yield shard, mesh


def measured(shapes: list[tuple[int, ...]], shards: int) -> int:
    """The peak of bytes that a step makes and frees."""
    with parameters_of(shards) as (make, mesh):
        parameters = [nn.Parameter(make(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = make(tuple(parameter.shape))
        groups = [{"params": parameters, MATRICES: 1}]
        optimizer = Muon(groups, 1e-3, mesh_of=lambda parameter: mesh, round_elements=ROUND)
        for parameter in parameters:
            optimizer.begin(parameter)
        states = [x for state in optimizer.state.values() for x in state.values()]
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        live: Any = Live([*map(local, parameters), *gradients, *states])
        with live:
            optimizer.step()
    return int(live.peak)


def planned(shapes: list[tuple[int, ...]], shards: int, twice: int) -> float:
    rows = []
    for shape in shapes:
        expert = int(len(shape) == 3)
        flops = iteration_flops(*shape[-2:]) * (shape[0] if expert else 1)
        tall = shape[0]
        broad = shape[-1] * (shape[1] if expert else 1)
        rows.append({"learns": 1, "count": 1, "expert": expert, "rows": tall, "rest": broad, "tall": tall,
                     "broad": broad, "size": 2, "numel": tall * broad / shards, "matrix_flops": flops})  # fmt: skip
    given = {
        "stage_size": shards,
        "ep": 1,
        "expert_shards": shards,
        "fsdp": shards,
        "round_elements": ROUND,
        "twice": twice,
        "made": 0,
    }
    return evaluate((*MUON, *WORK), given, {"tensors": rows})["orthogonal_work"]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(
    "shapes",
    [
        [(512, 512)],
        [(512, 2048)],
        [(256, 256)] * 64,
        [(8, 128, 256)] * 8,
        [(512, 1536), (1024, 1024), (8, 256, 512), (256, 256)] * 3,
    ],
    ids=["square", "wide", "rounds of squares", "experts", "mixed"],
)
def test_planned_bounds_hold_what_a_step_makes(shapes: list[tuple[int, ...]], shards: int) -> None:
    found = measured(shapes, shards)
    counters = 4 * len(shapes)
    assert planned(shapes, shards, 0) <= found - counters <= planned(shapes, shards, 1)
