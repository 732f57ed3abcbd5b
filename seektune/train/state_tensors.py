"""The tensors of a run's checkpoint: everything that a step changes, by name, and the random state."""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.checkpoint import Shard
from seektune.parallel.model import ParallelModel
from seektune.parallel.placement import shard_like
from seektune.train.optim.master import MasterOptimizer

MODEL = "model."
OPTIMIZER = "optimizer."
RANDOM = "random."


def run_tensors(model: ParallelModel, optimizer: MasterOptimizer) -> dict[str, Tensor | Shard]:
    """This rank's state of a run: weights, buffers and optimizer state by name, and torch's random state.

    Of a model with a frozen base only what is trained: the base is where it was read from. Random states carry the
    number of their process; other layouts ignore them.
    """
    held = model.trained_shards()
    tensors: dict[str, Tensor | Shard] = {MODEL + name: piece for name, piece in held.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            whole = value.dim() == 0
            tensors[f"{OPTIMIZER}{name}:{key}"] = value if whole else shard_like(name, parameter, value, model.mesh)
    return tensors | random_states(model.mesh.rank)


def begin_as_saved(model: ParallelModel, optimizer: MasterOptimizer, names: set[str]) -> None:
    """Create empty optimizer state for every parameter that had some in the checkpoint, to be filled; drop the rest."""
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"{OPTIMIZER}{name}:step" in names:
            optimizer.begin(parameter)


def is_random_state(name: str) -> bool:
    """Whether a tensor belongs to one process, so that other layouts ignore it."""
    return name.startswith(RANDOM)


def random_states(rank: int) -> dict[str, Tensor | Shard]:
    """The state of torch's generators, of the CPU and of the GPU in use, uint8."""
    states: dict[str, Tensor | Shard] = {f"{RANDOM}cpu.{rank}": torch.get_rng_state()}
    return states | ({f"{RANDOM}cuda.{rank}": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_states(tensors: Mapping[str, Tensor | Shard], rank: int) -> None:
    """Restore the result of `random_states`."""
    states = {name: state for name, state in tensors.items() if isinstance(state, Tensor)}
    torch.set_rng_state(states[f"{RANDOM}cpu.{rank}"])
    if f"{RANDOM}cuda.{rank}" in states:
        torch.cuda.set_rng_state(states[f"{RANDOM}cuda.{rank}"])
