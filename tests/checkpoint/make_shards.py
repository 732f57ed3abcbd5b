"""States cut into the pieces that ranks would hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.checkpoint import Shard


def bounds(length: int, count: int, odd: bool) -> list[int]:
    """Where `count` pieces of a dim begin and end: even ones (some empty if there are too few), or odd ones."""
    if not odd:
        size = -(-length // count)
        return [min(number * size, length) for number in range(count + 1)]
    generator = torch.Generator().manual_seed(length)
    inner = torch.randint(length + 1, (count - 1,), generator=generator).sort().values.tolist()
    return [0, *inner, length]


def cut(whole: Tensor, dim: int, begin: int, end: int) -> Shard:
    """A piece of its own memory."""
    offsets = [0] * whole.dim()
    offsets[dim] = begin
    return Shard(whole.narrow(dim, begin, end - begin).clone(), tuple(whole.shape), tuple(offsets))


def dealt(
    state: Mapping[str, Tensor], count: int, odd: bool = False, expert_dim: int = 0
) -> list[dict[str, Tensor | Shard]]:
    """What each of `count` ranks holds: every tensor cut along dim 0, stacked experts along `expert_dim`."""
    ranks: list[dict[str, Tensor | Shard]] = [{} for _ in range(count)]
    for name, whole in state.items():
        dim = expert_dim if ".experts." in name else 0
        edges = bounds(whole.shape[dim], count, odd) if whole.dim() else []
        for rank, held in enumerate(ranks):
            held[name] = cut(whole, dim, edges[rank], edges[rank + 1]) if edges else whole.clone()
    return ranks


def staged(state: Mapping[str, Tensor], stages: int) -> list[dict[str, Tensor]]:
    """What each stage of a pipeline holds: whole tensors, neighbours together."""
    names = list(state)
    size = -(-len(names) // stages)
    return [{name: state[name] for name in names[stage * size :][:size]} for stage in range(stages)]
