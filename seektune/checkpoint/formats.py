"""Checkpoint formats: which tensors are low-bit, and how each kind is encoded.

A *kind* is the encoding of one tensor: `fp4`, `fp8` (E8M0 scales), `fp8_f32` (F32 scales), `bf16`, `f32` or `i64`. A
format can ask for `fp8_f32_pow2`, `fp8_f32` whose scales are powers of two; headers of files do not distinguish them.
"""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.names import Shape, scale_name
from seektune.kernels import (
    FP4_GROUP,
    FP4_PER_BYTE,
    FP8_BLOCK,
    dequantize_fp4,
    dequantize_fp8,
    quantize_fp4,
    quantize_fp8,
)


def with_f32_scales(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An FP8 weight with its scales as F32."""
    return weight, scale.float()


@dataclass(frozen=True)
class Quantized:
    """A low-bit encoding with block scales."""

    dtype: torch.dtype
    scale_dtype: torch.dtype
    packing: int
    """Values per stored element of the last dim."""
    block: tuple[int, int]
    """Rows and columns that share a scale."""
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, Tensor], Tensor]

    def shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """Stored shapes of weight and scales for a matrix of `shape`."""
        rows, columns = shape
        weight = rows, columns // self.packing
        return weight, self.scale_shape(weight)

    def fits(self, shape: Shape) -> bool:
        """Whether a tensor of `shape` can be encoded: packed values need whole groups, other blocks may be partial."""
        return len(shape) == 2 and (self.packing == 1 or shape[1] % self.block[1] == 0)

    def scale_shape(self, weight: Shape) -> Shape:
        """Shape of the scales of a weight with this stored shape."""
        rows = weight[0]
        columns = weight[1] * self.packing
        return -(-rows // self.block[0]), -(-columns // self.block[1])


QUANTIZED = {
    "fp4": Quantized(
        torch.int8, torch.float8_e8m0fnu, FP4_PER_BYTE, (1, FP4_GROUP), encode=quantize_fp4, decode=dequantize_fp4
    ),
    "fp8": Quantized(
        torch.float8_e4m3fn,
        torch.float8_e8m0fnu,
        1,
        (FP8_BLOCK, FP8_BLOCK),
        encode=quantize_fp8,
        decode=dequantize_fp8,
    ),
    "fp8_f32": Quantized(
        torch.float8_e4m3fn,
        torch.float32,
        1,
        (FP8_BLOCK, FP8_BLOCK),
        encode=lambda weight: quantize_fp8(weight, power_of_two=False),
        decode=dequantize_fp8,
    ),
    "fp8_f32_pow2": Quantized(
        torch.float8_e4m3fn,
        torch.float32,
        1,
        (FP8_BLOCK, FP8_BLOCK),
        encode=lambda weight: with_f32_scales(*quantize_fp8(weight)),
        decode=dequantize_fp8,
    ),
}
PLAIN = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64, "i64": torch.int64}

EXPERTS = r"\.experts\.\d+\.w[123]\.weight$"
LINEARS = (
    r"\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b|indexer\.wq_b)\.weight$"
    r"|\.shared_experts\.w[123]\.weight$"
    r"|^mtp\.\d+\.([eh]|main)_proj\.weight$"
)
ALWAYS_F32 = r"(hc_(attn|ffn|head)_(fn|base|scale)|attn_sink|\.ape|gate\.bias)$"
TABLES = r"gate\.tid2eid$"


@dataclass(frozen=True)
class Format:
    """The kinds of routed experts, other large matrices and the rest; some tensors are F32 or I64 in every format."""

    experts: str
    linears: str
    rest: str = "bf16"
    quantization: dict[str, Any] | None = None
    """`quantization_config` of config.json."""
    expert_dtype: str | None = None

    def kind(self, released: str) -> str:
        """The kind of the tensor with that released name."""
        rules = ((TABLES, "i64"), (ALWAYS_F32, "f32"), (EXPERTS, self.experts), (LINEARS, self.linears))
        return next((kind for pattern, kind in rules if re.search(pattern, released)), self.rest)

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """config.json of a checkpoint in this format, from another checkpoint's."""
        dtype = {"bf16": "bfloat16", "f32": "float32"}[self.rest]
        own = {"quantization_config": self.quantization, "expert_dtype": self.expert_dtype, "torch_dtype": dtype}
        # newer libraries write dtype instead of torch_dtype; both could contradict each other
        kept = {key: value for key, value in source.items() if key not in own and key != "dtype"}
        return {**kept, **{key: value for key, value in own.items() if value is not None}}


_BASE = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_RELEASED = {**_BASE, "scale_fmt": "ue8m0"}

FORMATS = {
    "released": Format("fp4", "fp8", quantization=_RELEASED, expert_dtype="fp4"),
    # vLLM reads F32 scales of FP8 experts only: it takes the bits of E8M0 ones for numbers
    "fp8": Format("fp8_f32_pow2", "fp8", quantization=_RELEASED, expert_dtype="fp8"),
    "base": Format("fp8_f32", "fp8_f32", quantization=_BASE, expert_dtype="fp8"),
    "bf16": Format("bf16", "bf16"),
    "fp32": Format("f32", "f32", rest="f32"),
}
"""`released`: FP4 experts, other matrices FP8, as V4-Flash. `fp8`: experts in FP8 too. `base`: FP8 with F32 scales."""

READABLE = {**FORMATS, "fp8-e8m0": Format("fp8", "fp8", quantization=_RELEASED, expert_dtype="fp8")}
"""The formats that are recognized. `fp8-e8m0`: FP8 with E8M0 scales everywhere, as others and older versions wrote."""


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is unknown; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def kind_on_disk(dtype: str, scale_dtype: str | None) -> str | None:
    """The kind of a stored tensor, from the safetensors dtypes of weight and scales; None if no kind has these."""
    return _KINDS.get((dtype, scale_dtype))


def kind_of_header(kind: str) -> str:
    """What `kind_on_disk` finds of a tensor that was written as this kind."""
    return _ON_DISK.get(kind, kind)


def unknown_kind(name: str, dtype: str, scale_dtype: str | None, names: Container[str]) -> str:
    """The end of a sentence about a tensor that `kind_on_disk` does not know: its weight and scales judged together.

    `names` holds all names of the folder.
    """
    if scale_dtype is not None:
        return f"dtype {dtype} with {scale_dtype} scales, which no supported format uses"
    if dtype not in {weight for weight, scale in _KINDS if scale is not None}:
        return f"dtype {dtype}, which no supported format uses"
    scale = scale_name(name)
    other = f"{name}_scale_inv"
    why = f"its scales are named {other}, but V4's {scale}" if other in names else f"{scale} is missing"
    return f"dtype {dtype} without scales ({why}), which no supported format uses"


_KINDS = {
    ("I8", "F8_E8M0"): "fp4",
    ("F8_E4M3", "F8_E8M0"): "fp8",
    ("F8_E4M3", "F32"): "fp8_f32",
    ("BF16", None): "bf16",
    ("F16", None): "f16",
    ("F32", None): "f32",
    ("F64", None): "f64",
    ("I64", None): "i64",
}
_ON_DISK = {"fp8_f32_pow2": "fp8_f32"}
