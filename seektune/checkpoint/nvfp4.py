"""NVFP4, as NVIDIA's tools store it: read to be converted, never written.

A weight is packed E2M1 with an E4M3 scale per row and 16 columns (`weight_scale`) and an F32 scale of the whole matrix
(`weight_scale_2`). `input_scale` belongs to activations and is not used.
"""

from collections.abc import Callable

from torch import Tensor

from seektune.checkpoint.names import Shape
from seektune.kernels import NVFP4_GROUP, dequantize_nvfp4

NVFP4 = "nvfp4"
WAY_OUT = "which can only be converted: seektune convert SRC DST --to bf16, or --to released"
"""The end of a sentence about weights in NVFP4."""
_SCALES = {"_scale": "F8_E4M3", "_scale_2": "F32"}
"""How the names of a weight's scales continue its own, and their dtypes."""
_WEIGHT = ".weight"
_EXTRA = (".weight_scale", ".weight_scale_2", ".input_scale")
"""How the names of the tensors beside a weight end."""


def is_nvfp4(name: str, dtype_of: Callable[[str], str | None]) -> bool:
    """Whether a weight is NVFP4, perhaps without one of its scales, given safetensors' dtype of each tensor."""
    packed = name.endswith(_WEIGHT) and dtype_of(name) == "U8"
    return packed and any(dtype_of(name + end) is not None for end in _SCALES)


def weight_beside(name: str) -> str | None:
    """The weight to which a scale of NVFP4 belongs; None for the name of anything else."""
    end = next((end for end in _EXTRA if name.endswith(end)), None)
    return None if end is None else name.removesuffix(end) + _WEIGHT


def stored_names(name: str) -> list[str]:
    """The names of a weight and its scales."""
    return [name, *(name + end for end in _SCALES)]


def decoded_shape(name: str, dtype_of: Callable[[str], str | None], shape_of: Callable[[str], Shape]) -> Shape:
    """The shape of a weight's values, from the stored dtypes and shapes.

    Raises:
        ValueError: a scale is missing, or does not match the weight.
    """
    for end, dtype in _SCALES.items():
        if (found := dtype_of(name + end)) != dtype:
            fault = "is missing" if found is None else f"has dtype {found}, not {dtype}"
            raise ValueError(f"{name} is NVFP4, but its {name + end} {fault}")
    weight, scale, matrix_scale = (shape_of(each) for each in stored_names(name))
    values = (weight[0], 2 * weight[1]) if len(weight) == 2 else ()
    if not values or scale != (values[0], values[1] / NVFP4_GROUP) or matrix_scale not in ((), (1,)):
        raise ValueError(
            f"{name} has shape {list(weight)}, which does not match the shapes {list(scale)} and {list(matrix_scale)} "
            "of its NVFP4 scales"
        )
    return values


def decode(name: str, read: Callable[[str], Tensor]) -> Tensor:
    """The values of a weight in fp32, each rounded once from its exact product."""
    return dequantize_nvfp4(*(read(each) for each in stored_names(name)))
