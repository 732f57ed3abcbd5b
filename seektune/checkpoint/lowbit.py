"""Low-bit tensors as a model keeps them: the bytes of the file as integers, which nothing casts on its way.

FP4 is int8 and FP8 uint8, with E8M0 scales as uint8 or F32 scales beside it: `x.weight` and `x.scale`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.checkpoint.formats import QUANTISED
from seektune.checkpoint.names import Shape, scale_name
from seektune.checkpoint.stored import Stored
from seektune.kernels import values_per_element

_KINDS = {
    (torch.int8, torch.uint8): "fp4",
    (torch.uint8, torch.uint8): "fp8",
    (torch.uint8, torch.float32): "fp8_f32",
}
_E4M3_NAN = 127
_E8M0_NAN = 255


def as_parameters(stored: Stored) -> tuple[Tensor, Tensor]:
    """Weight and scales of a quantised tensor in the model's dtypes; the same memory."""
    assert stored.scale is not None, f"{stored.kind} is not low-bit"
    weight, scale = next(dtypes for dtypes, kind in _KINDS.items() if kind == stored.kind)
    return stored.weight.view(weight), stored.scale.view(scale)


def from_parameters(weight: Tensor, scale: Tensor) -> Stored:
    """The tensor in the dtypes of the file; the same memory."""
    kind = lowbit_kind(weight, scale)
    return Stored(kind, weight.view(QUANTISED[kind].dtype), scale.view(QUANTISED[kind].scale_dtype))


def lowbit_kind(weight: Tensor, scale: Tensor) -> str:
    """`fp4`, `fp8` or `fp8_f32`."""
    return _KINDS[weight.dtype, scale.dtype]


def lowbit_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The quantized weights of a state dict by name, and the names of their scales."""
    weights = [name for name, tensor in state.items() if tensor.dtype in (torch.int8, torch.uint8)]
    return {name: scale_name(name) for name in weights if name.endswith(".weight")}


def weight_shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shapes of a state dict's tensors, without the scales of quantized ones."""
    scales = set(lowbit_names(state).values())
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in scales}


def value_counts(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers that each tensor of a state dict stands for: two in a byte of FP4, none in a scale."""
    scales = set(lowbit_names(state).values())
    return {name: x.numel() * values_per_element(x.dtype) for name, x in state.items() if name not in scales}


def is_finite(stored: Stored) -> bool:
    """Whether no value of a quantised tensor, or of parts of weight and scales, is NaN or infinite, by its bytes."""
    weight, scale = as_parameters(stored)
    good = bool((scale != _E8M0_NAN).all() if scale.dtype == torch.uint8 else scale.isfinite().all())
    return good and not (weight.dtype == torch.uint8 and bool(((weight & _E4M3_NAN) == _E4M3_NAN).any()))
