"""Small numerical operations, one name each: plain torch in `reference` is the definition of every one of them."""

from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK, dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.expert_linear import expert_linear, sort_by_expert
from seektune.kernels.reference.index_scores import index_topk
from seektune.kernels.reference.multiply_out import multiply_out
from seektune.kernels.reference.packed_linear import grouped_linear, packed_expert_linear, packed_linear
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.quantize import (
    fake_quantize_fp4,
    fake_quantize_fp8,
    hadamard,
    quantize_fp4,
    quantize_fp4_closely,
    quantize_fp8,
    recast_fp4_as_fp8,
)
from seektune.kernels.reference.rounded_linear import Rounding, rounded_expert_linear, rounded_linear
from seektune.kernels.reference.sinkhorn import sinkhorn
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible, sparse_attention
from seektune.kernels.reference.swiglu import clamped_swiglu
from seektune.kernels.reference.vocabulary_loss import vocabulary_loss

__all__ = [
    "FP4_GROUP",
    "FP8_BLOCK",
    "Chosen",
    "Prefix",
    "Rounding",
    "Visible",
    "clamped_swiglu",
    "dequantize_fp4",
    "dequantize_fp8",
    "expert_linear",
    "fake_quantize_fp4",
    "fake_quantize_fp8",
    "grouped_linear",
    "hadamard",
    "index_topk",
    "multiply_out",
    "packed_expert_linear",
    "packed_linear",
    "quantize_fp4",
    "quantize_fp4_closely",
    "quantize_fp8",
    "recast_fp4_as_fp8",
    "rounded_expert_linear",
    "rounded_linear",
    "sinkhorn",
    "sort_by_expert",
    "sparse_attention",
    "upcast",
    "vocabulary_loss",
]
