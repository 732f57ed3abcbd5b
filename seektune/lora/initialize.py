"""Initializes adapters: random A and zero B, the same with any sharding."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor, nn

from seektune.lora.dora import DoraLinear
from seektune.lora.low_rank import ExpertLowRank, LowRank
from seektune.lora.state import TRAINED, adapted_modules


@torch.no_grad()
def init_adapters(model: nn.Module, seed: int, adapter: str = TRAINED) -> None:
    """Values of a new adapter: A as `initial_a` makes it, B zero, so that nothing changes yet."""
    for name, module in adapted_modules(model):
        if isinstance(module, DoraLinear):
            module.init_magnitude()
        found = module.lora[adapter]
        assert isinstance(found, LowRank | ExpertLowRank)
        found.A.copy_(initial_a(name, found.A.shape, seed))
        found.B.zero_()


def initial_a(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A new A, uniform as a linear map starts, for the module of that name.

    Each has a random generator of its own, seeded by the name: the same in any order and however the model is cut.
    """
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
    bound = shape[-1] ** -0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)
