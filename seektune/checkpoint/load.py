"""Released weights into a model's tensors: one at a time, decoded by the dtype on disk, nothing missed or dropped."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.formats import PLAIN, QUANTISED
from seektune.checkpoint.names import Shape, Slot, scale_name, slots
from seektune.checkpoint.packed import is_finite, pack, packed_kind, packed_names
from seektune.checkpoint.source import FolderSource


@torch.no_grad()
def load_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Copy a checkpoint folder into the tensors of a model's state dict, whatever their dtype and device.

    Packed tensors take over the bytes on disk; others are decoded.

    Raises:
        ValueError: a tensor is missing, unexpected, of the wrong shape or dtype, or holds NaN or infinity.
    """
    source, scales = FolderSource(folder), packed_names(state)
    kept = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in set(scales.values())}
    wanted = list(slots(kept))
    check_names(source, wanted, folder)
    for slot in wanted:
        if slot.model in scales:
            _load_packed(source, slot, _part(state, slot.model, slot), _part(state, scales[slot.model], slot))
        else:
            _load_plain(source, slot, _part(state, slot.model, slot))


def _part(state: Mapping[str, Tensor], name: str, slot: Slot) -> Tensor:
    return state[name] if slot.expert is None else state[name][slot.expert]


def _load_plain(source: FolderSource, slot: Slot, target: Tensor) -> None:
    _check_stored(source, slot, target.is_floating_point())
    value = source.values(slot.released)
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{source.files.where(slot.released)} holds NaN or infinity; the file is damaged")
    target.copy_(value)


def _load_packed(source: FolderSource, slot: Slot, weight: Tensor, scale: Tensor) -> None:
    name, kind = slot.released, packed_kind(weight, scale)
    if source.kind(name) != kind:
        raise ValueError(
            f"{source.files.where(name)} is stored as {source.kind(name)}, its place in the model as {kind}"
        )
    _check_shape(source, name, tuple(weight.shape))
    _check_shape(source, scale_name(name), tuple(scale.shape))
    stored = source.stored(name)
    if not is_finite(stored):
        raise ValueError(f"{source.files.where(name)} holds NaN or infinity; the file is damaged")
    for target, found in zip((weight, scale), pack(stored), strict=True):
        target.copy_(found)


def check_names(source: FolderSource, wanted: list[Slot], folder: Path) -> None:
    """See that a folder holds exactly the wanted tensors.

    Raises:
        ValueError: one is missing or unexpected; the sentence names it.
    """
    expected, found = {slot.released for slot in wanted}, {name for name, _ in source.shapes()}
    if missing := sorted(expected - found):
        raise ValueError(f"{folder} lacks {_some(missing)}")
    if unexpected := sorted(found - expected):
        raise ValueError(f"{folder} holds {_some(unexpected)}, which the model of its config.json does not have")


def _check_stored(source: FolderSource, slot: Slot, floating: bool) -> None:
    """The kind on disk can hold what the model needs, and the stored shapes are right."""
    name, kind = slot.released, source.kind(slot.released)
    if kind in QUANTISED and len(slot.shape) == 2:
        weight, scale = QUANTISED[kind].shapes(slot.shape)
        _check_shape(source, name, weight)
        _check_shape(source, scale_name(name), scale)
        return
    if kind in QUANTISED or PLAIN[kind].is_floating_point != floating:
        needed = "a float" if floating else "an integer"
        raise ValueError(
            f"{source.files.where(name)} is {source.files.dtype(name)}, the model needs {needed} tensor there"
        )
    _check_shape(source, name, slot.shape)


def _check_shape(source: FolderSource, name: str, shape: Shape) -> None:
    found = source.files.shape(name)
    if found != tuple(shape):
        raise ValueError(f"{source.files.where(name)} has shape {list(found)}, the model needs {list(shape)}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
