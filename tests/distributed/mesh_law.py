"""A model in which every mechanism counts, its gradients on one device, and the same on a mesh of processes."""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.objective import Objective
from seektune.parallel.apply import parallelize
from seektune.parallel.config import ParallelConfig, PipelineConfig
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.pieces import like, local
from seektune.parallel.plan import make_plan
from seektune.sequence import IGNORE_INDEX, Batch

from ..conftest import TOY, randomize

CONFIG = DeepseekV4Config.preset("tiny").replace(
    **(TOY | {"num_hidden_layers": 7, "compress_ratios": [0, 4, 128, 4, 128, 4, 128, 0], "num_hash_layers": 2})
)
LENGTHS = [(600,), (1, 3, 4, 5, 127, 128, 129, 100), (257,), (2,), (300, -20, 130), (1,), (64, 64), (31, 7, 500)]
"""Documents of each row; a negative length is padding."""


@dataclass(frozen=True)
class Result:
    """What one step found."""

    parts: Tensor
    norm: float
    loads: dict[int, list[int]]
    gradients: dict[str, Tensor]
    losses: Tensor


def whole_model(seed: int = 0) -> DeepseekV4ForCausalLM:
    model = DeepseekV4ForCausalLM(CONFIG)
    randomize(model, seed)
    return model


def batches(micro_size: int) -> list[Batch]:
    """Eight rows of very different lengths, packed and padded, as micro-batches."""
    dice = torch.Generator().manual_seed(3)
    rows = []
    for lengths in LENGTHS:
        size = sum(abs(length) for length in lengths)
        tokens = torch.randint(CONFIG.vocab_size, (size,), generator=dice)
        documents = torch.cat([torch.full((abs(n),), i + 1 if n > 0 else 0) for i, n in enumerate(lengths)])
        labels = torch.where((torch.rand(size, generator=dice) < 0.7) & (documents > 0), tokens, IGNORE_INDEX)
        rows.append(Batch(tokens[None], labels[None], documents[None]))
    groups = [rows[i : i + micro_size] for i in range(0, len(rows), micro_size)]
    return [together(group) for group in groups]


def together(rows: list[Batch]) -> Batch:
    longest = max(row.tokens.shape[1] for row in rows)
    wide = [row.padded(length=longest).tensors() for row in rows]
    return Batch(*(torch.cat(each) for each in zip(*wide, strict=True)))


def objective(data: list[Batch]) -> Objective:
    tokens = sum(int((batch.documents != 0).sum()) for batch in data)
    return Objective(sum(batch.taught() for batch in data), tokens, mtp=True, mtp_weight=0.3, balance_weight=0.05)


def step(model: ParallelModel, micro_size: int) -> Result:
    from seektune.train.gradient import gradient_norm

    data = batches(micro_size)
    outcome = model.train(data, objective(data), lambda phase: None)
    norm = gradient_norm(model.named_parameters(), model.mesh)
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            piece = like(name, parameter, local(parameter.grad), model.mesh)
            gradients[name] = (piece.tensor.clone(), piece.box)
            parameter.grad = None
    return Result(
        outcome.parts_M3.sum(dim=0),
        norm,
        {layer: load.tolist() for layer, load in outcome.loads.items()},
        gradients,
        model.score(together(split_rows(data))).losses_BT,
    )


def split_rows(data: list[Batch]) -> list[Batch]:
    return [Batch(*(x[i : i + 1] for x in batch.tensors())) for batch in data for i in range(batch.tokens.shape[0])]


def spread(parallel: ParallelConfig, dtype: torch.dtype = torch.float32) -> ParallelModel:
    """The whole model's weights, spread."""
    mesh = Mesh.of(make_plan(parallel, dist.get_world_size(), CONFIG), torch.device("cpu"))
    model = parallelize(CONFIG, mesh, parallel, dtype)
    reference = whole_model().state_dict()
    with torch.no_grad():
        for name, piece in model.held().items():
            piece.tensor.copy_(reference[name][piece.box])
    return model


def run_spread(parallel: dict, micro_size: int) -> Result:
    """In a worker."""
    pipeline = PipelineConfig(**parallel.pop("pipeline", {}))
    found = step(spread(ParallelConfig(**parallel, pipeline=pipeline)), micro_size)
    gradients = {name: (piece.numpy(), box) for name, (piece, box) in found.gradients.items()}
    return replace(found, parts=found.parts.numpy(), losses=found.losses.numpy(), gradients=gradients)
