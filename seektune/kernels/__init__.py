"""Small numerical operations, one name each: plain torch in `reference` is the definition of every one of them.

What a call runs is decided here and nowhere else: see `Kernel`. Operations without a faster twin are the definition.
"""

from seektune.kernels import fused, native
from seektune.kernels import reference as plain
from seektune.kernels.kernel import Kernel
from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK, dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.expert_linear import sort_by_expert
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
from seektune.kernels.reference.route import gate_scores, gate_weights
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible
from seektune.kernels.unpack import multiply_out

clamped_swiglu = Kernel(plain.clamped_swiglu, fused.clamped_swiglu, "swiglu", native=native.clamped_swiglu)
expert_linear = Kernel(plain.expert_linear, plain.expert_linear, "expert_linear")
expert_mlp = Kernel(plain.expert_mlp, fused.expert_mlp, "expert_mlp", native=native.expert_mlp)
grouped_linear = Kernel(plain.grouped_linear, plain.grouped_linear, native=native.grouped_linear)
hyper_collect = Kernel(plain.hyper_collect, plain.hyper_collect, native=native.hyper_collect)
hyper_read = Kernel(plain.hyper_read, fused.hyper_read, "hyper", native=native.hyper_read)
hyper_write = Kernel(plain.hyper_write, fused.hyper_write, "hyper", native=native.hyper_write)
index_topk = Kernel(plain.index_topk, fused.index_topk, "index_scores", native=native.index_topk)
linear = Kernel(plain.linear, plain.linear, native=native.linear)
packed_expert_linear = Kernel(plain.packed_expert_linear, plain.packed_expert_linear, "packed_linear")
packed_linear = Kernel(plain.packed_linear, plain.packed_linear, "packed_linear")
pool_windows = Kernel(plain.pool_windows, fused.pool_windows, native=native.pool_windows)
quantized_expert_linear = Kernel(plain.quantized_expert_linear, plain.quantized_expert_linear, "quantized_linear")
rms_norm = Kernel(plain.rms_norm, fused.rms_norm, native=native.rms_norm)
rotate = Kernel(plain.rotate, fused.rotate, "rotation", native=native.rotate)
rotated_unit = Kernel(plain.rotated_unit, fused.rotated_unit, "rotation", native=native.rotated_unit)
route = Kernel(plain.route, plain.route, native=native.route)
sinkhorn = Kernel(plain.sinkhorn, fused.sinkhorn, "sinkhorn")
sort_pairs = Kernel(plain.sort_pairs, plain.sort_pairs, native=native.sort_pairs)
sparse_attention = Kernel(
    plain.sparse_attention, fused.sparse_attention, "sparse_attention", native=native.sparse_attention
)
vocabulary_loss = Kernel(plain.vocabulary_loss, fused.vocabulary_loss, "vocabulary_loss")

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
    "gate_scores",
    "gate_weights",
    "grouped_linear",
    "hadamard",
    "hyper_collect",
    "hyper_read",
    "hyper_write",
    "index_topk",
    "linear",
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
    "route",
    "sinkhorn",
    "sort_by_expert",
    "sort_pairs",
    "sparse_attention",
    "upcast",
    "vocabulary_loss",
]
