"""Proof that nothing moves but adapters: a digest of every frozen byte, the same however a model is cut."""

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
    """What does not move."""

    digest: str
    """Of every byte, the same however the model is cut."""
    nbytes: int


@dataclass(frozen=True)
class _Piece:
    """Of a named tensor, as one process tells the others."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    sums: tuple[int, int]
    nbytes: int


@torch.no_grad()
def frozen_digest(base: Mapping[str, Tensor | Shard], ranks: Ranks = ONE_RANK) -> FrozenDigest:
    """A digest of every byte that adapters leave alone; equal before and after training, or something moved.

    All processes call it with the pieces that they hold. Copies that differ count as moved. Streamed weights are not in
    memory and not in it: their files are only read.
    """
    shards = {name: as_shard(held) for name, held in base.items()}
    own = {name: _told(shard) for name, shard in shards.items() if not shard.tensor.is_meta}
    pieces: dict[str, set[_Piece]] = {}
    for told in ranks.each(lambda: own):
        for name, piece in told.items():
            pieces.setdefault(name, set()).add(piece)
    digest = hashlib.sha256()
    nbytes = 0
    for name, found in sorted(pieces.items()):
        total, weighted = (sum(piece.sums[i] for piece in found) % 2**64 for i in (0, 1))
        (form,) = {(piece.dtype, piece.shape) for piece in found}
        digest.update(f"{name} {form} {total} {weighted}\n".encode())
        nbytes += sum(piece.nbytes for piece in found)
    return FrozenDigest(digest.hexdigest(), nbytes)


def _told(shard: Shard) -> _Piece:
    x = shard.tensor
    return _Piece(str(x.dtype), shard.shape, shard.offsets, tuple(x.shape), _sums(shard), x.nbytes)


def _sums(shard: Shard) -> tuple[int, int]:
    """Sums modulo 2^64 that add up over pieces with whole rows, as fast as reading.

    A row's 64-bit words are summed, each times its odd place; the rows are, once alone and once times theirs.
    """
    x = shard.tensor.detach()
    rows = x.flatten(0, -2) if x.dim() > 1 else x.reshape(-1, 1)
    numbers = _row_numbers(shard)
    assert x.dim() < 2 or x.shape[-1] == shard.shape[-1], "rows are not cut"
    height = max(BAND // (rows.shape[1] * rows.itemsize), 1)
    total = weighted = torch.zeros((), dtype=torch.int64, device=x.device)
    for band, places in zip(rows.split(height), numbers.split(height), strict=True):
        words = _words(band)
        sums = (words * (torch.arange(words.shape[1], device=x.device) * 2 + 1)).sum(dim=1)
        total = total + sums.sum()
        weighted = weighted + (sums * (places * 2 + 1)).sum()
    return int(total), int(weighted)


def _words(rows: Tensor) -> Tensor:
    """Rows as 64-bit words, the last of each filled with zeros."""
    data = rows.contiguous().view(torch.uint8)
    # words need whole numbers of eight bytes, at an address that is one
    ragged = data.shape[1] % 8 or data.storage_offset() % 8
    return (F.pad(data, (0, -data.shape[1] % 8)).clone() if ragged else data).view(torch.int64)


def _row_numbers(shard: Shard) -> Tensor:
    """The place of each row here among all rows of the tensor; of a vector each number is a row."""
    numbers = torch.zeros((), dtype=torch.int64, device=shard.tensor.device)
    dims = max(len(shard.shape) - 1, min(len(shard.shape), 1))
    for dim in range(dims):
        begin = shard.offsets[dim]
        size = shard.tensor.shape[dim]
        here = torch.arange(begin, begin + size, device=numbers.device)
        numbers = (numbers * shard.shape[dim]).unsqueeze(-1) + here
    return numbers.flatten()
