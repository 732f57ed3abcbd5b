"""Low-bit tensors in a model's state dict: the bytes of the file as integers, so that `.to(dtype)` cannot cast them.

FP4 is int8 and FP8 is uint8; scales are uint8 (E8M0) or F32: `x.weight` and `x.scale`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.checkpoint.formats import QUANTIZED, kind_of_header
from seektune.checkpoint.names import Shape, scale_name
from seektune.checkpoint.stored import Stored, all_finite, bands_of
from seektune.kernels import values_per_element

_KINDS = {
    (torch.int8, torch.uint8): "fp4",
    (torch.uint8, torch.uint8): "fp8",
    (torch.uint8, torch.float32): "fp8_f32",
}
_POSITIVE_NAN = 127
_NEGATIVE_NAN = 255
"""The codes of NaN in E4M3: the largest bytes, read as signed and as unsigned numbers."""
_LARGEST_CODE = {"fp4": 6.0, "fp8": 448.0, "fp8_f32": 448.0}
_LARGEST_VALUE = torch.finfo(torch.bfloat16).max


def as_parameters(stored: Stored) -> tuple[Tensor, Tensor]:
    """Weight and scales of a quantized tensor in the model's dtypes; views of the same memory."""
    assert stored.scale is not None, f"{stored.kind} is not low-bit"
    weight, scale = next(dtypes for dtypes, kind in _KINDS.items() if kind == kind_of_header(stored.kind))
    return stored.weight.view(weight), stored.scale.view(scale)


def from_parameters(weight: Tensor, scale: Tensor) -> Stored:
    """The tensor in the dtypes of the file; views of the same memory."""
    kind = lowbit_kind(weight, scale)
    return Stored(kind, weight.view(QUANTIZED[kind].dtype), scale.view(QUANTIZED[kind].scale_dtype))


def lowbit_kind(weight: Tensor, scale: Tensor) -> str:
    """`fp4`, `fp8` or `fp8_f32`."""
    return _KINDS[weight.dtype, scale.dtype]


def lowbit_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of a state dict's quantized weights, each with the name of its scales."""
    weights = [name for name, tensor in state.items() if tensor.dtype in (torch.int8, torch.uint8)]
    return {name: scale_name(name) for name in weights if name.endswith(".weight")}


def weight_shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shapes of a state dict's tensors, without the scales of quantized ones."""
    scales = set(lowbit_names(state).values())
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in scales}


def value_counts(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of weights in each tensor of a state dict: a byte of FP4 holds two; scales are left out."""
    scales = set(lowbit_names(state).values())
    return {name: x.numel() * values_per_element(x.dtype) for name, x in state.items() if name not in scales}


def is_finite(stored: Stored) -> bool:
    """Whether every decoded value is finite, as `all_finite` says; quantized tensors are seldom decoded for this."""
    if stored.scale is None:
        return all_finite(stored.weight)
    return is_plainly_finite(stored) or all(all_finite(stored.part(band).values()) for band in bands_of(stored.shape))


def is_plainly_finite(stored: Stored) -> bool:
    """Whether no code is NaN and no scale is NaN or so large that a code could become infinity.

    Only bytes are looked at, so weight and scales may be different shards of a tensor, or empty.
    """
    weight, _ = as_parameters(stored)
    assert stored.scale is not None, f"{stored.kind} is not low-bit"
    largest = stored.scale.float().abs().amax().item() if stored.scale.numel() else 0.0
    # false also where the largest scale is NaN
    if not largest * _LARGEST_CODE[kind_of_header(stored.kind)] <= _LARGEST_VALUE:
        return False
    if weight.dtype != torch.uint8 or not weight.numel():
        return True
    return bool(weight.view(torch.int8).max() != _POSITIVE_NAN) and bool(weight.max() != _NEGATIVE_NAN)
