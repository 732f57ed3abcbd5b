"""8-bit moments: close to AdamW's, their blocks are parts of rows, and so their shards are those of any layout."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from seektune.checkpoint.shard import as_shard
from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import shard_like
from seektune.planner.memory import rank_memory
from seektune.train.optim.adamw import AdamW
from seektune.train.optim.adamw_8bit import BLOCK, AdamW8bit, check_torchao, is_quantized
from seektune.workflows.dry_run import take_dry_run

from ..places import TINY
from ..planner.jobs import layout, recipe
from .mesh_law import Pieces, assembled, portable
from .workers import run_workers

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
SHAPE = (33, 2 * BLOCK)


def made(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def moved(kind: type[AdamW], split: bool = False, dtype: torch.dtype = torch.float32) -> Pieces:
    """The weight and the optimizer's states after three steps, as checkpoints have them."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)) if split else None

    def spread(x: torch.Tensor) -> torch.Tensor:
        return x if mesh is None else distribute_tensor(x, mesh, [Shard(0)])

    parameter = nn.Parameter(spread(made(0).to(dtype)))
    optimizer = kind([parameter], lr=1e-2)
    for step in range(1, 4):
        parameter.grad = spread(made(step).to(dtype))
        optimizer.step()
    states = {name: x for name, x in optimizer.state[parameter].items() if x.dim()}
    states |= {"weight": parameter.to_local() if split else parameter}
    pieces = {name: as_shard(shard_like("w", parameter, x.detach(), Mesh.alone())) for name, x in states.items()}
    return {name: portable(piece) for name, piece in pieces.items()}


def moved_apart(dtype: torch.dtype) -> Pieces:
    return moved(AdamW8bit, split=True, dtype=dtype)


def test_steps_are_close_to_those_of_fp32_moments() -> None:
    eight, full = (moved(kind)["weight"][0] for kind in (AdamW8bit, AdamW))
    distance = np.linalg.norm(eight - full) / np.linalg.norm(full - made(0).numpy())
    assert 0 < distance < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_processes_have_the_codes_and_scales_of_one(dtype: torch.dtype) -> None:
    one = moved(AdamW8bit, dtype=dtype)
    found = assembled(run_workers(2, moved_apart, dtype), one)
    assert found.keys() >= {"exp_avg_codes", "exp_avg_scale", "exp_avg_sq_codes", "exp_avg_sq_scale", "weight"}
    for name, (array, _) in one.items():
        assert np.array_equal(found[name], array), name


def test_what_is_quantized_is_decided_by_the_matrix() -> None:
    shapes = {(64, 64): False, (32, 128): True, (31, 128): False, (4096,): False, (2, 32, 128): True}
    assert {shape: is_quantized(torch.zeros(shape)) for shape in shapes} == shapes


def test_a_run_without_torchao_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seektune.train.optim.adamw_8bit.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torchao: pip install 'seektune\[torchao\]'"):
        check_torchao()


@pytest.mark.slow
def test_planned_bytes_equal_the_dry_run() -> None:
    asked = ["model.dtype=bf16", "batch.global_size=8", "batch.micro_size=2", "batch.length=8"]
    asked += ["optimizer.name=adamw_8bit", "parallel.ep_size=2"]
    dry = take_dry_run(recipe(TINY, *asked), 2, [0, 1])
    plans = [rank_memory(layout(TINY, 2, *asked), rank).upper for rank in range(2)]
    assert [plan["moments"] for plan in plans] == [rank.bytes.moments for rank in dry.ranks]
    assert all(2 * plan["trained"] < plan["moments"] < 8 * plan["trained"] for plan in plans)
