"""Load a checkpoint folder into a model's tensors, one at a time; the dtype on disk decides how each is decoded."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.formats import PLAIN, QUANTIZED, TABLES
from seektune.checkpoint.lowbit import as_parameters, is_finite, is_plainly_finite, lowbit_kind, lowbit_names
from seektune.checkpoint.names import Shape, Slot, scale_name, slots
from seektune.checkpoint.nvfp4 import NVFP4, WAY_OUT
from seektune.checkpoint.shard import Shard, as_shard
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored, all_finite


@torch.no_grad()
def load_weights(
    state: Mapping[str, Tensor | Shard], folder: Path, complete: Mapping[str, Shape] | None = None
) -> None:
    """Copy a checkpoint folder into the tensors of a model's state dict, of any dtype and device.

    Of a sharded tensor, only this rank's experts and rows are read; memory beyond the state is that of one shard.
    `complete` gives names and shapes of the whole model's weights if `state` lacks some of them. Quantized tensors
    receive the bytes on disk; others are decoded.

    Raises:
        ValueError: a tensor is missing, unexpected, of the wrong shape or dtype, or holds NaN or infinity.
    """
    source = FolderSource(folder)
    shards = {name: as_shard(tensor) for name, tensor in state.items()}
    scales = lowbit_names({name: shard.tensor for name, shard in shards.items()})
    shapes = {name: shard.shape for name, shard in shards.items() if name not in set(scales.values())}
    check_names(source, slots(shapes if complete is None else complete), folder)
    for slot in slots(shapes):
        target = _part(shards, slot.model, slot)
        if slot.model in scales:
            kind = lowbit_kind(shards[slot.model].tensor, shards[scales[slot.model]].tensor)
            _read_packed(source, slot, kind, (target, _part(shards, scales[slot.model], slot)))
        elif target is not None and target.tensor.numel():
            _check_stored(source, slot)
            _read(source, slot.released, target)


def _part(shards: Mapping[str, Shard], name: str, slot: Slot) -> Shard | None:
    """This rank's shard of a slot's tensor; None if it holds none."""
    return shards[name] if slot.expert is None else shards[name].expert(slot.expert)


def _read(source: FolderSource, name: str, target: Shard) -> None:
    """Fill a shard from its rows on disk."""
    if not target.shape:
        value = source.values(name)
    else:
        rows, *columns = target.box
        value = source.values(name, rows)[(slice(None), *columns)]
    if not all_finite(value):
        raise ValueError(f"{source.files.where(name)} holds NaN or infinity; the file is damaged")
    target.tensor.copy_(value)


def _read_packed(source: FolderSource, slot: Slot, kind: str, targets: tuple[Shard | None, Shard | None]) -> None:
    """Copy the bytes of a low-bit tensor: this rank's shards of weight and scales, which may be sharded differently."""
    name = slot.released
    names = (slot.released, scale_name(slot.released))
    if source.kind(name) != kind:
        raise ValueError(
            f"{source.files.where(name)} is stored as {source.kind(name)}, but the model holds it as {kind}"
        )
    weight, scale = (_bytes_here(source, each, target) for each, target in zip(names, targets, strict=True))
    stored = Stored(kind, weight, scale)
    if not is_plainly_finite(stored) and not is_finite(source.stored(name)):
        raise ValueError(f"{source.files.where(name)} holds NaN or infinity; the file is damaged")
    for target, found in zip(targets, as_parameters(stored), strict=True):
        if target is not None:
            target.tensor.copy_(found)


def _bytes_here(source: FolderSource, name: str, target: Shard | None) -> Tensor:
    """A shard of a tensor as stored; an empty tensor without a target."""
    if target is None:
        return torch.empty(0, dtype=source.files.torch_dtype(name))
    _check_shape(source, name, target.shape)
    rows, *columns = target.box
    return source.files.read(name, rows)[(slice(None), *columns)]


def check_fit(source: FolderSource, shapes: Mapping[str, Shape], folder: Path) -> None:
    """Compare the headers of a folder with the decoded tensors that a model needs, before memory is allocated for it.

    Raises:
        ValueError: a tensor is missing, unexpected, or of the wrong shape or dtype; the message names it.
    """
    wanted = list(slots(shapes))
    check_names(source, wanted, folder)
    for slot in wanted:
        _check_stored(source, slot)


def check_names(source: FolderSource, wanted: Iterable[Slot], folder: Path) -> None:
    """Check that a folder holds exactly the wanted tensors.

    Raises:
        ValueError: one is missing or unexpected; the message names it.
    """
    expected = {slot.released for slot in wanted}
    found = {name for name, _ in source.shapes()}
    if missing := sorted(expected - found):
        raise ValueError(f"{folder} lacks {_some(missing)}")
    if unexpected := sorted(found - expected):
        raise ValueError(f"{folder} holds {_some(unexpected)}, which the model of its config.json does not have")


def _check_stored(source: FolderSource, slot: Slot) -> None:
    """Check that the kind on disk can hold what the model needs, and that the stored shapes match."""
    name = slot.released
    kind = source.kind(slot.released)
    if kind == NVFP4:
        raise ValueError(f"{source.files.where(name)} is NVFP4, {WAY_OUT}")
    floating = re.search(TABLES, name) is None
    if kind in QUANTIZED and len(slot.shape) == 2:
        weight, scale = QUANTIZED[kind].shapes(slot.shape)
        _check_shape(source, name, weight)
        _check_shape(source, scale_name(name), scale)
        return
    if kind in QUANTIZED or PLAIN[kind].is_floating_point != floating:
        needed = "a float" if floating else "an integer"
        raise ValueError(
            f"{source.files.where(name)} has dtype {source.files.dtype(name)}, but the model needs {needed} tensor"
        )
    _check_shape(source, name, slot.shape)


def _check_shape(source: FolderSource, name: str, shape: Shape) -> None:
    found = source.files.shape(name)
    if found != tuple(shape):
        raise ValueError(f"{source.files.where(name)} has shape {list(found)}, but the model needs {list(shape)}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
