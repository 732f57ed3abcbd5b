"""Pieces of named tensors: all of them make up the whole, each part of it as often as it has copies."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.parallelize import parallelize
from seektune.parallel.placement import replicas_of
from tests.distributed.mesh_law import SHALLOW
from tests.distributed.workers import run_workers

Box = tuple[tuple[int, int], ...]


def boxes(
    parallel: dict[str, Any], architecture: DeepseekV4Config
) -> tuple[int, dict[str, tuple[Box, int, tuple[int, ...]]]]:
    """In a worker: what it holds of each parameter, how many hold the same, the whole's shape; and what all train."""
    config = ParallelConfig.model_validate(parallel)
    mesh = Mesh.of(make_dims(config, dist.get_world_size(), architecture), torch.device("cpu"))
    model = parallelize(architecture, mesh, config, torch.bfloat16)
    parameters = dict(model.named_parameters())
    found = {
        name: (tuple((s.start, s.stop) for s in piece.box), replicas_of(name, parameters[name], mesh), piece.shape)
        for name, piece in model.shards().items()
        if name in parameters
    }
    return model.trainable(), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"pp_size": 2}),
        *(
            pytest.param(world, parallel, marks=pytest.mark.slow)
            for world, parallel in (
                (4, {"ep_size": 2}),
                (3, {}),
                (4, {"dp_replicate": 2, "ep_size": 4}),
                (4, {"dp_replicate": 2}),
                (8, {"pp_size": 2, "cp_size": 2, "ep_size": 2}),
            )
        ),
    ],
)
def test_pieces_make_up_the_model(world: int, parallel: dict[str, Any]):
    # three processes cut experts evenly and most of the rest unevenly
    config = SHALLOW.replace(n_routed_experts=6) if world == 3 else SHALLOW
    whole = DeepseekV4ForCausalLM(config, device="meta")
    answers = run_workers(world, boxes, parallel, config)
    for name, parameter in whole.named_parameters():
        held = np.zeros(parameter.shape, dtype=int)
        copies = set()
        for _, found in answers:
            if name in found:
                box, count, shape = found[name]
                assert shape == tuple(parameter.shape), name
                held[tuple(slice(*each) for each in box)] += 1
                copies.add(count)
        assert {*np.unique(held)} == copies, name
    assert {trains for trains, _ in answers} == {sum(p.numel() for p in whole.parameters() if p.requires_grad)}
