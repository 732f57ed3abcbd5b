"""Writing safetensors files in a stream: memory for one tensor, whatever the size of the file."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.files import INDEX, SINGLE
from seektune.checkpoint.header import header_bytes
from seektune.checkpoint.names import Shape
from seektune.io import console
from seektune.io.atomic import replacing, write_all
from seektune.io.json_file import write_json

SHARD_BYTES = 4 * 10**9
"""Limit that puts one layer of V4-Flash into each shard, as the release does."""

LARGEST_SHARD_BYTES = 20 * 10**9
"""A layer up to this size, such as one of V4-Pro or of V4-Flash in bf16, is not torn apart."""


@dataclass(frozen=True)
class FilePiece:
    """Tensors that are made together, such as a weight and its scales: what they will be, and how to get them."""

    tensors: Mapping[str, tuple[torch.dtype, Shape]]
    load: Callable[[], Mapping[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.tensors.values())


def split(pieces: Iterable[FilePiece], limit: int = SHARD_BYTES) -> list[list[FilePiece]]:
    """Pieces in order as shards of at most `limit` bytes; a layer begins a new shard where it would not fit whole."""
    shards: list[list[FilePiece]] = [[]]
    filled = 0
    for layer in _by_layer(pieces):
        parts = [layer] if sum(piece.size for piece in layer) <= limit else [[piece] for piece in layer]
        for part in parts:
            size = sum(piece.size for piece in part)
            if shards[-1] and filled + size > limit:
                shards.append([])
                filled = 0
            shards[-1].extend(part)
            filled += size
    return shards


def shard_limit(pieces: Iterable[FilePiece]) -> int:
    """Bytes of a shard such that every layer has one of its own, as the releases do, if that is not too large."""
    layers = [sum(piece.size for piece in layer) for layer in _by_layer(pieces)]
    return max([SHARD_BYTES, *(size for size in layers if size <= LARGEST_SHARD_BYTES)])


def shard_names(count: int) -> list[str]:
    """File names of the shards, as the ecosystem numbers them."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def file_size(pieces: Sequence[FilePiece]) -> int:
    """Bytes of the file that `write_shard` makes."""
    return len(_header(pieces)) + sum(piece.size for piece in pieces)


def check_room(folder: Path, shards: Iterable[Sequence[FilePiece]]) -> None:
    """Find out that the disk is too small before hours of work, not after.

    Raises:
        OSError: it is.
    """
    needed = sum(file_size(shard) for shard in shards)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder} has {console.size(free)} free, {console.size(needed)} are needed")


def write_shard(file: Path, pieces: Sequence[FilePiece], written: Callable[[int], None] = lambda size: None) -> None:
    """Write one safetensors file; it gets its name when it is complete. `written` hears of each piece's bytes.

    Raises:
        OSError: writing failed; the unfinished file is removed.
    """
    with replacing(file) as out:
        write_all(out, _header(pieces), file)
        for piece in pieces:
            _write_piece(out, piece, file)
            written(piece.size)


def write_index(folder: Path, shards: Sequence[Sequence[FilePiece]]) -> None:
    """Write the index of a folder of several shards; a single file needs none."""
    if len(shards) == 1:
        return
    names = shard_names(len(shards))
    placed = {
        name: file for file, shard in zip(names, shards, strict=True) for piece in shard for name in piece.tensors
    }
    index = {"metadata": {"total_size": sum(piece.size for shard in shards for piece in shard)}, "weight_map": placed}
    write_json(folder / INDEX, index)


def _by_layer(pieces: Iterable[FilePiece]) -> Iterator[list[FilePiece]]:
    """Neighbouring pieces of one layer (`layers.N` or `mtp.N`), of the embedding, or of all that is around the head."""
    for _, layer in groupby(pieces, key=_layer):
        yield list(layer)


def _layer(piece: FilePiece) -> tuple[str, ...]:
    parts = next(iter(piece.tensors)).split(".")
    if parts[0] in ("layers", "mtp"):
        return tuple(parts[:2])
    return ("embed",) if parts[0] == "embed" else ("head",)


def _header(pieces: Sequence[FilePiece]) -> bytes:
    return header_bytes({name: kind for piece in pieces for name, kind in piece.tensors.items()})


def _write_piece(out: FileIO, piece: FilePiece, file: Path) -> None:
    # in a function of its own, so that no piece outlives its writing
    tensors = piece.load()
    for name, (dtype, shape) in piece.tensors.items():
        write_all(out, _bytes(tensors[name], dtype, shape), file)


def _bytes(tensor: Tensor, dtype: torch.dtype, shape: Shape) -> memoryview:
    assert tensor.dtype == dtype, f"{tensor.dtype} where {dtype} was planned"
    assert tuple(tensor.shape) == tuple(shape), f"{tuple(tensor.shape)} where {shape} was planned"
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
