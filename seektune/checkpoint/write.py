"""Writing safetensors files in a stream: memory for one tensor, whatever the size of the file."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.files import INDEX, SINGLE
from seektune.checkpoint.names import Shape

SHARD_BYTES = 4 * 10**9
"""Limit that puts one layer of V4-Flash into each shard, as the release does."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""How safetensors spells a dtype."""


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together, such as a weight and its scales: what they will be, and how to get them."""

    tensors: Mapping[str, tuple[torch.dtype, Shape]]
    load: Callable[[], Mapping[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.tensors.values())


def split(pieces: Iterable[Piece], limit: int = SHARD_BYTES) -> list[list[Piece]]:
    """Pieces in order as shards of at most `limit` bytes; a layer begins a new shard where it would not fit whole."""
    shards: list[list[Piece]] = [[]]
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


def shard_names(count: int) -> list[str]:
    """File names of the shards, as the ecosystem numbers them."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def write_shard(file: Path, pieces: Sequence[Piece], written: Callable[[int], None] = lambda size: None) -> None:
    """Write one safetensors file; it gets its name when it is complete. `written` hears of each piece's bytes.

    Raises:
        OSError: writing failed; the unfinished file is removed.
    """
    scratch = file.with_name(f"{file.name}.partial")
    try:
        with scratch.open("wb") as out:
            out.write(_header(pieces))
            for piece in pieces:
                tensors = piece.load()
                for name, (dtype, shape) in piece.tensors.items():
                    _put(out.write, tensors[name], dtype, shape)
                written(piece.size)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def write_index(folder: Path, shards: Sequence[Sequence[Piece]]) -> None:
    """Write the index of a folder of several shards; a single file needs none."""
    if len(shards) == 1:
        return
    names = shard_names(len(shards))
    placed = {
        name: file for file, shard in zip(names, shards, strict=True) for piece in shard for name in piece.tensors
    }
    index = {"metadata": {"total_size": sum(piece.size for shard in shards for piece in shard)}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _by_layer(pieces: Iterable[Piece]) -> Iterable[list[Piece]]:
    """Neighbouring pieces of one layer (`layers.N` or `mtp.N`); other tensors stand alone."""
    group: list[Piece] = []
    current = None
    for piece in pieces:
        parts = next(iter(piece.tensors)).split(".")
        layer = tuple(parts[:2]) if parts[0] in ("layers", "mtp") else None
        if group and (layer is None or layer != current):
            yield group
            group = []
        current = layer
        group.append(piece)
    if group:
        yield group


def _header(pieces: Sequence[Piece]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        for name, (dtype, shape) in piece.tensors.items():
            size = dtype.itemsize * prod(shape)
            entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _put(write: Callable[[Any], object], tensor: Tensor, dtype: torch.dtype, shape: Shape) -> None:
    assert tensor.dtype == dtype, f"{tensor.dtype} where {dtype} was planned"
    assert tuple(tensor.shape) == tuple(shape), f"{tuple(tensor.shape)} where {shape} was planned"
    write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
