"""Numerical operations, one name each; `reference` defines each in plain torch.

This is the only place that lists the implementations; `Kernel` picks one. Operations without a twin are the reference.
"""

from seektune.kernels import cpu, eager
from seektune.kernels import reference as plain
from seektune.kernels.dequantize import dequantize
from seektune.kernels.dispatch import Kernel, cpu_decode_kernels
from seektune.kernels.reference.dequantize import (
    FP4_GROUP,
    FP4_PER_BYTE,
    FP8_BLOCK,
    NVFP4_GROUP,
    decoded_columns,
    dequantize_fp4,
    dequantize_fp8,
    dequantize_nvfp4,
    values_per_element,
)
from seektune.kernels.reference.expert_linear import sort_by_expert
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.quantize import (
    hadamard,
    quantize_fp4,
    quantize_fp4_closely,
    quantize_fp8,
    recast_fp4_as_fp8,
)
from seektune.kernels.reference.rounded_linear import Rounding, lora_delta, rounded_expert_linear, rounded_linear
from seektune.kernels.reference.route import gate_scores, gate_weights
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

clamped_swiglu = Kernel(plain.clamped_swiglu, eager.clamped_swiglu, "swiglu", cpu=cpu.clamped_swiglu)
expert_linear = Kernel(plain.expert_linear, plain.expert_linear, "expert_linear")
expert_mlp = Kernel(plain.expert_mlp, eager.expert_mlp, "expert_mlp", cpu=cpu.expert_mlp)
fake_quantize_fp4 = Kernel(plain.fake_quantize_fp4, plain.fake_quantize_fp4, "fake_quantize")
fake_quantize_fp8 = Kernel(plain.fake_quantize_fp8, plain.fake_quantize_fp8, "fake_quantize")
fake_quantize_weight = Kernel(plain.fake_quantize_weight, eager.fake_quantize_weight, "fake_quantize")
grouped_linear = Kernel(plain.grouped_linear, plain.grouped_linear, cpu=cpu.grouped_linear)
hyper_collect = Kernel(plain.hyper_collect, plain.hyper_collect)
hyper_read = Kernel(plain.hyper_read, eager.hyper_read, "hyper", cpu=cpu.hyper_read)
hyper_write = Kernel(plain.hyper_write, eager.hyper_write, "hyper", cpu=cpu.hyper_write)
index_topk = Kernel(plain.index_topk, eager.index_topk, "index_scores", cpu=cpu.index_topk)
linear = Kernel(plain.linear, plain.linear, cpu=cpu.linear)
lowbit_expert_linear = Kernel(plain.lowbit_expert_linear, plain.lowbit_expert_linear, "lowbit_linear")
lowbit_linear = Kernel(plain.lowbit_linear, plain.lowbit_linear, "lowbit_linear")
pool_windows = Kernel(plain.pool_windows, eager.pool_windows)
rms_norm = Kernel(plain.rms_norm, eager.rms_norm, "norm", cpu=cpu.rms_norm)
rotate = Kernel(plain.rotate, eager.rotate, "rotation", cpu=cpu.rotate)
norm_rope = Kernel(plain.norm_rope, eager.norm_rope, "rotation", cpu=cpu.norm_rope)
route = Kernel(plain.route, plain.route, cpu=cpu.route)
sinkhorn = Kernel(plain.sinkhorn, eager.sinkhorn, "sinkhorn")
sort_pairs = Kernel(plain.sort_pairs, plain.sort_pairs, cpu=cpu.sort_pairs)
sparse_attention = Kernel(plain.sparse_attention, eager.sparse_attention, "sparse_attention", cpu=cpu.sparse_attention)
linear_cross_entropy = Kernel(plain.linear_cross_entropy, eager.linear_cross_entropy, "linear_cross_entropy")
linear_divergence = Kernel(plain.linear_divergence, eager.linear_divergence)
linear_z_loss = Kernel(plain.linear_z_loss, eager.linear_z_loss)
token_logprobs = Kernel(plain.token_logprobs, eager.token_logprobs, "token_logprobs")

__all__ = [
    "FP4_GROUP",
    "FP4_PER_BYTE",
    "FP8_BLOCK",
    "NVFP4_GROUP",
    "Chosen",
    "Kernel",
    "Prefix",
    "Rounding",
    "Visible",
    "clamped_swiglu",
    "cpu_decode_kernels",
    "decoded_columns",
    "dequantize",
    "dequantize_fp4",
    "dequantize_fp8",
    "dequantize_nvfp4",
    "expert_linear",
    "expert_mlp",
    "fake_quantize_fp4",
    "fake_quantize_fp8",
    "fake_quantize_weight",
    "gate_scores",
    "gate_weights",
    "grouped_linear",
    "hadamard",
    "hyper_collect",
    "hyper_read",
    "hyper_write",
    "index_topk",
    "linear",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_z_loss",
    "lora_delta",
    "lowbit_expert_linear",
    "lowbit_linear",
    "norm_rope",
    "pool_windows",
    "quantize_fp4",
    "quantize_fp4_closely",
    "quantize_fp8",
    "recast_fp4_as_fp8",
    "rms_norm",
    "rotate",
    "rounded_expert_linear",
    "rounded_linear",
    "route",
    "sinkhorn",
    "sort_by_expert",
    "sort_pairs",
    "sparse_attention",
    "token_logprobs",
    "upcast",
    "values_per_element",
]
