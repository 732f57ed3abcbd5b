"""Split state dicts into the shards that ranks would hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.checkpoint import Shard


def split_points(length: int, count: int, uneven: bool) -> list[int]:
    """Boundaries of `count` shards of a dim: equal sizes (the last ones may be empty), or uneven ones."""
    if not uneven:
        size = -(-length // count)
        return [min(number * size, length) for number in range(count + 1)]
    generator = torch.Generator().manual_seed(length)
    inner = torch.randint(length + 1, (count - 1,), generator=generator).sort().values.tolist()
    return [0, *inner, length]


def make_shard(whole: Tensor, dim: int, begin: int, end: int) -> Shard:
    """A shard with its own memory."""
    offsets = [0] * whole.dim()
    offsets[dim] = begin
    return Shard(whole.narrow(dim, begin, end - begin).clone(), tuple(whole.shape), tuple(offsets))


def shard_state(
    state: Mapping[str, Tensor], count: int, uneven: bool = False, expert_dim: int = 0
) -> list[dict[str, Tensor | Shard]]:
    """The shards of each of `count` ranks: every tensor split along dim 0, stacked experts along `expert_dim`."""
    ranks: list[dict[str, Tensor | Shard]] = [{} for _ in range(count)]
    for name, whole in state.items():
        dim = expert_dim if ".experts." in name else 0
        edges = split_points(whole.shape[dim], count, uneven) if whole.dim() else []
        for rank, held in enumerate(ranks):
            held[name] = make_shard(whole, dim, edges[rank], edges[rank + 1]) if edges else whole.clone()
    return ranks


def split_stages(state: Mapping[str, Tensor], stages: int) -> list[dict[str, Tensor]]:
    """The tensors of each pipeline stage: whole tensors, in order."""
    names = list(state)
    size = -(-len(names) // stages)
    return [{name: state[name] for name in names[stage * size :][:size]} for stage in range(stages)]
