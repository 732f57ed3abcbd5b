"""Write safetensors files as a stream: memory for one tensor, whatever the size of the file."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.header import header_bytes
from seektune.checkpoint.names import Shape
from seektune.io import console
from seektune.io.atomic import replacing, write_all
from seektune.io.json_file import write_json
from seektune.io.tensor_names import INDEX, SINGLE

SHARD_BYTES = 4 * 10**9
"""Size limit that puts one layer of V4-Flash into each shard, as in the release."""

LARGEST_SHARD_BYTES = 20 * 10**9
"""Layers up to this size, such as those of V4-Pro or of V4-Flash in bf16, are not split over shards."""


@dataclass(frozen=True)
class LazyTensors:
    """Tensors that are loaded together, such as a weight and its scales; dtypes and shapes are known in advance."""

    tensors: Mapping[str, tuple[torch.dtype, Shape]]
    load: Callable[[], Mapping[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.tensors.values())


def split(items: Iterable[LazyTensors], limit: int = SHARD_BYTES) -> list[list[LazyTensors]]:
    """Split tensors, in order, into shards of at most `limit` bytes; a layer that does not fit starts a new shard."""
    shards: list[list[LazyTensors]] = [[]]
    filled = 0
    for layer in _by_layer(items):
        parts = [layer] if sum(item.size for item in layer) <= limit else [[item] for item in layer]
        for part in parts:
            size = sum(item.size for item in part)
            if shards[-1] and filled + size > limit:
                shards.append([])
                filled = 0
            shards[-1].extend(part)
            filled += size
    return shards


def shard_limit(items: Iterable[LazyTensors]) -> int:
    """Shard size that gives every layer a shard of its own, as in the release, unless layers are too large."""
    layers = [sum(item.size for item in layer) for layer in _by_layer(items)]
    return max([SHARD_BYTES, *(size for size in layers if size <= LARGEST_SHARD_BYTES)])


def shard_names(count: int) -> list[str]:
    """File names of the shards, numbered as Hugging Face does."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def file_size(items: Sequence[LazyTensors]) -> int:
    """Bytes of the file that `write_shard` writes."""
    return len(_header(items)) + sum(item.size for item in items)


def check_disk_space(folder: Path, shards: Iterable[Sequence[LazyTensors]]) -> None:
    """Check that shards fit on the disk before hours of work.

    Raises:
        OSError: there is not enough space.
    """
    needed = sum(file_size(shard) for shard in shards)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"not enough disk space: {folder} has {console.size(free)} free, but {console.size(needed)} are needed"
        )


def write_shard(file: Path, items: Sequence[LazyTensors], written: Callable[[int], None] = lambda size: None) -> None:
    """Write one safetensors file atomically. `written` is called with the bytes of each of the `tensors`.

    Raises:
        OSError: writing failed; the unfinished file is removed.
    """
    with replacing(file) as out:
        write_all(out, _header(items), file)
        for item in items:
            _write_item(out, item, file)
            written(item.size)


def write_index(folder: Path, shards: Sequence[Sequence[LazyTensors]]) -> None:
    """Write the index of a folder with several shards; a single file needs none."""
    if len(shards) == 1:
        return
    names = shard_names(len(shards))
    placed = {name: file for file, shard in zip(names, shards, strict=True) for item in shard for name in item.tensors}
    index = {"metadata": {"total_size": sum(item.size for shard in shards for item in shard)}, "weight_map": placed}
    write_json(folder / INDEX, index)


def _by_layer(items: Iterable[LazyTensors]) -> Iterator[list[LazyTensors]]:
    """Adjacent tensors of one layer (`layers.N` or `mtp.N`), of the embedding, or of the head, its norm and hc_head."""
    for _, layer in groupby(items, key=_layer):
        yield list(layer)


def _layer(item: LazyTensors) -> tuple[str, ...]:
    parts = next(iter(item.tensors)).split(".")
    if parts[0] in ("layers", "mtp"):
        return tuple(parts[:2])
    return ("embed",) if parts[0] == "embed" else ("head",)


def _header(items: Sequence[LazyTensors]) -> bytes:
    return header_bytes({name: kind for item in items for name, kind in item.tensors.items()})


def _write_item(out: FileIO, item: LazyTensors, file: Path) -> None:
    # a function of its own, so that the tensors are freed once they are written
    tensors = item.load()
    for name, (dtype, shape) in item.tensors.items():
        write_all(out, _bytes(tensors[name], dtype, shape), file)


def _bytes(tensor: Tensor, dtype: torch.dtype, shape: Shape) -> memoryview:
    assert tensor.dtype == dtype, f"{tensor.dtype} where {dtype} was planned"
    assert tuple(tensor.shape) == tuple(shape), f"{tuple(tensor.shape)} where {shape} was planned"
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
