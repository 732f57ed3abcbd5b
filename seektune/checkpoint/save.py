"""A model's tensors as safetensors under released names, split into shards, complete or not there at all."""

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from seektune.checkpoint.files import INDEX, SINGLE
from seektune.checkpoint.names import Slot, slots, stays_f32
from seektune.checkpoint.publish import complete_folder

SHARD_BYTES = 5 * 10**9


def save_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype,
    write_config: Callable[[Path], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a state dict; weights become `dtype`, while tensors whose released form is F32 or I64 keep theirs.

    Memory beyond the model is one shard. `write_config` adds config.json to the folder before it gets its name.

    Raises:
        ValueError: `folder` exists and is not empty.
        OSError: writing failed; nothing is left behind.
    """
    with complete_folder(folder) as scratch:
        write_config(scratch)
        shards = _split(slots({name: tuple(tensor.shape) for name, tensor in state.items()}), state, dtype, shard_bytes)
        placed: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_shard({slot.released: _stored(slot, state, dtype) for slot in shard}, scratch / file)
            placed |= {slot.released: file for slot in shard}
        if len(shards) > 1:
            total = sum(_size(slot, state, dtype) for shard in shards for slot in shard)
            index = {"metadata": {"total_size": total}, "weight_map": placed}
            (scratch / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _stored_dtype(slot: Slot, state: Mapping[str, Tensor], dtype: torch.dtype) -> torch.dtype:
    own = state[slot.model].dtype
    if not own.is_floating_point:
        return own
    return torch.float32 if stays_f32(slot.released) else dtype


def _stored(slot: Slot, state: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    tensor = state[slot.model] if slot.expert is None else state[slot.model][slot.expert]
    return tensor.detach().to("cpu", _stored_dtype(slot, state, dtype), copy=True).contiguous()


def _size(slot: Slot, state: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    return prod(slot.shape) * _stored_dtype(slot, state, dtype).itemsize


def _split(
    every: Iterable[Slot], state: Mapping[str, Tensor], dtype: torch.dtype, shard_bytes: int
) -> list[list[Slot]]:
    """Slots in order, a new shard where the next tensor would not fit."""
    shards: list[list[Slot]] = [[]]
    filled = 0
    for slot in every:
        size = _size(slot, state, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(slot)
        filled += size
    return shards


def _write_shard(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {file.name}: {error}") from None
