"""A digest of all frozen weights, to check that training changes only adapters; independent of the sharding."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.checkpoint import ONE_RANK, Ranks, Shard, as_shard

BAND = 2**23
"""Bytes of a tensor that are summed at a time."""


@dataclass(frozen=True)
class FrozenDigest:
    """Digest and size of the frozen weights."""

    digest: str
    """SHA-256 over the sums of every byte; independent of the sharding."""
    nbytes: int


@dataclass(frozen=True)
class _ShardSums:
    """The sums of one rank's shard of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    sums: tuple[int, int]
    nbytes: int


@torch.no_grad()
def frozen_digest(base: Mapping[str, Tensor | Shard], ranks: Ranks = ONE_RANK) -> FrozenDigest:
    """A digest of every frozen byte; if it differs after training, a frozen weight changed.

    All ranks call it together, each with its own shards. Replicas that differ change the digest. Streamed weights are
    left out: they are not in memory, and their files are only read.
    """
    shards = {name: as_shard(tensor) for name, tensor in base.items()}
    own = {name: _shard_sums(shard) for name, shard in shards.items() if not shard.tensor.is_meta}
    by_name: dict[str, set[_ShardSums]] = {}
    for local in ranks.each(lambda: own):
        for name, shard_sums in local.items():
            by_name.setdefault(name, set()).add(shard_sums)
    digest = hashlib.sha256()
    nbytes = 0
    for name, found in sorted(by_name.items()):
        total, weighted = (sum(shard_sums.sums[i] for shard_sums in found) % 2**64 for i in (0, 1))
        (dtype_and_shape,) = {(shard_sums.dtype, shard_sums.shape) for shard_sums in found}
        digest.update(f"{name} {dtype_and_shape} {total} {weighted}\n".encode())
        nbytes += sum(shard_sums.nbytes for shard_sums in found)
    return FrozenDigest(digest.hexdigest(), nbytes)


def _shard_sums(shard: Shard) -> _ShardSums:
    x = shard.tensor
    return _ShardSums(str(x.dtype), shard.shape, shard.offsets, tuple(x.shape), _sums(shard), x.nbytes)


def _sums(shard: Shard) -> tuple[int, int]:
    """Sums modulo 2^64 that add up over shards of whole rows, as fast as reading.

    The 64-bit words of a row are summed with odd weights (2 i + 1); the row sums are added up, once unweighted and once
    with the odd weights of the rows.
    """
    x = shard.tensor.detach()
    rows = x.flatten(0, -2) if x.dim() > 1 else x.reshape(-1, 1)
    numbers = _row_numbers(shard)
    assert x.dim() < 2 or x.shape[-1] == shard.shape[-1], "rows are not sharded"
    height = max(BAND // (rows.shape[1] * rows.itemsize), 1)
    total = weighted = torch.zeros((), dtype=torch.int64, device=x.device)
    for band, indices in zip(rows.split(height), numbers.split(height), strict=True):
        words = _words(band)
        sums = (words * (torch.arange(words.shape[1], device=x.device) * 2 + 1)).sum(dim=1)
        total = total + sums.sum()
        weighted = weighted + (sums * (indices * 2 + 1)).sum()
    return int(total), int(weighted)


def _words(rows: Tensor) -> Tensor:
    """Rows as 64-bit words, padded with zeros."""
    data = rows.contiguous().view(torch.uint8)
    # a view as words needs lengths and offsets that are multiples of eight bytes
    unaligned = data.shape[1] % 8 or data.storage_offset() % 8
    return (F.pad(data, (0, -data.shape[1] % 8)).clone() if unaligned else data).view(torch.int64)


def _row_numbers(shard: Shard) -> Tensor:
    """The index of each local row among all rows of the tensor; each element of a vector is a row."""
    numbers = torch.zeros((), dtype=torch.int64, device=shard.tensor.device)
    dims = max(len(shard.shape) - 1, min(len(shard.shape), 1))
    for dim in range(dims):
        begin = shard.offsets[dim]
        size = shard.tensor.shape[dim]
        local = torch.arange(begin, begin + size, device=numbers.device)
        numbers = (numbers * shard.shape[dim]).unsqueeze(-1) + local
    return numbers.flatten()
