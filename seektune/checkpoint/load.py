"""Released weights into a model's tensors: one at a time, decoded by the dtype on disk, nothing missed or dropped."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.files import TensorFiles
from seektune.checkpoint.names import Slot, scale_name, slots
from seektune.kernels import dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.quantize import FP4_GROUP, FP8_BLOCK

Decode = Callable[[Tensor, Tensor], Tensor]

QUANTISED: dict[str, tuple[Decode, int, int, int]] = {
    "F8_E4M3": (dequantize_fp8, 1, FP8_BLOCK, FP8_BLOCK),
    "I8": (dequantize_fp4, 2, 1, FP4_GROUP),
}
"""How to decode a weight with scales: values per element of its last dim, rows and columns that share a scale."""
SCALE_DTYPES = {"F8_E4M3": ("F8_E8M0", "F32"), "I8": ("F8_E8M0",)}
FLOATS = ("BF16", "F16", "F32", "F64")
INTEGERS = ("I64", "I32")


@torch.no_grad()
def load_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Copy a checkpoint folder into the tensors of a model's state dict, whatever their dtype and device.

    Raises:
        ValueError: a tensor is missing, unexpected, of the wrong shape or dtype, or holds NaN or infinity.
    """
    files = TensorFiles(folder)
    wanted = list(slots({name: tuple(tensor.shape) for name, tensor in state.items()}))
    _check_names(files, wanted, folder)
    for slot in wanted:
        target = state[slot.model] if slot.expert is None else state[slot.model][slot.expert]
        value = _decoded(files, slot, target)
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{files.where(slot.released)} holds NaN or infinity; the file is damaged")
        target.copy_(value)


def _check_names(files: TensorFiles, wanted: list[Slot], folder: Path) -> None:
    names = files.names()
    expected = {slot.released for slot in wanted}
    if missing := sorted(expected - names):
        raise ValueError(f"{folder} lacks {_some(missing)}")
    scales = {scale_name(name) for name in expected if files.dtype(name) in QUANTISED}
    if unscaled := sorted(scales - names):
        raise ValueError(f"{folder} lacks {_some(unscaled)}: the quantised weights beside them cannot be decoded")
    if unexpected := sorted(names - expected - scales):
        raise ValueError(f"{folder} holds {_some(unexpected)}, which the model of its config.json does not have")


def _decoded(files: TensorFiles, slot: Slot, target: Tensor) -> Tensor:
    name, dtype = slot.released, files.dtype(slot.released)
    if dtype in QUANTISED and name.endswith(".weight") and len(slot.shape) == 2:
        decode, packing, rows, columns = QUANTISED[dtype]
        weight, scale = files.read(name), files.read(scale_name(name))
        _check_shape(files, name, weight, (slot.shape[0], slot.shape[1] // packing))
        _check_shape(files, scale_name(name), scale, (-(-slot.shape[0] // rows), -(-slot.shape[1] // columns)))
        if files.dtype(scale_name(name)) not in SCALE_DTYPES[dtype]:
            raise ValueError(f"{files.where(scale_name(name))} is {files.dtype(scale_name(name))}, not a block scale")
        return decode(weight, scale)
    if dtype not in (FLOATS if target.is_floating_point() else INTEGERS):
        kind = "a float" if target.is_floating_point() else "an integer"
        raise ValueError(f"{files.where(name)} is {dtype}, but the model needs {kind} tensor there")
    value = files.read(name)
    _check_shape(files, name, value, slot.shape)
    return value


def _check_shape(files: TensorFiles, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{files.where(name)} has shape {list(value.shape)}, the model needs {list(shape)}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
