"""Small numerical operations, one name each: plain torch in `reference` is the definition of every one of them.

What a call runs is decided here and nowhere else: see `Kernel`. Operations without a faster twin are the definition.
"""

from seektune.kernels import fused
from seektune.kernels import reference as plain
from seektune.kernels.kernel import Kernel
from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK, dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.expert_linear import expert_linear, sort_by_expert
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
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible
from seektune.kernels.unpack import multiply_out

clamped_swiglu = Kernel(plain.clamped_swiglu, fused.clamped_swiglu, "swiglu")
expert_mlp = Kernel(plain.expert_mlp, fused.expert_mlp)
hyper_read = Kernel(plain.hyper_read, fused.hyper_read)
hyper_write = Kernel(plain.hyper_write, fused.hyper_write)
index_topk = Kernel(plain.index_topk, fused.index_topk, "index_scores")
pool_windows = Kernel(plain.pool_windows, fused.pool_windows)
quantized_expert_linear = Kernel(plain.quantized_expert_linear, plain.quantized_expert_linear, "quantized_linear")
rms_norm = Kernel(plain.rms_norm, fused.rms_norm)
rotate = Kernel(plain.rotate, fused.rotate)
rotated_unit = Kernel(plain.rotated_unit, fused.rotated_unit)
sinkhorn = Kernel(plain.sinkhorn, fused.sinkhorn, "sinkhorn")
sparse_attention = Kernel(plain.sparse_attention, fused.sparse_attention, "sparse_attention")
vocabulary_loss = Kernel(plain.vocabulary_loss, fused.vocabulary_loss)

__all__ = [
    "FP4_GROUP",
    "FP8_BLOCK",
    "Chosen",
    "Kernel",
    "Prefix",
    "Rounding",
    "Visible",
    "clamped_swiglu",
    "dequantize_fp4",
    "dequantize_fp8",
    "expert_linear",
    "expert_mlp",
    "fake_quantize_fp4",
    "fake_quantize_fp8",
    "grouped_linear",
    "hadamard",
    "hyper_read",
    "hyper_write",
    "index_topk",
    "multiply_out",
    "packed_expert_linear",
    "packed_linear",
    "pool_windows",
    "quantize_fp4",
    "quantize_fp4_closely",
    "quantize_fp8",
    "quantized_expert_linear",
    "recast_fp4_as_fp8",
    "rms_norm",
    "rotate",
    "rotated_unit",
    "rounded_expert_linear",
    "rounded_linear",
    "sinkhorn",
    "sort_by_expert",
    "sparse_attention",
    "upcast",
    "vocabulary_loss",
]
