"""Numerical operations, one name each; `reference` defines each in plain torch.

This is the only place that lists the implementations; `Kernel` picks one. Operations without a twin are the reference.
"""

from seektune.kernels import cpu, eager, invariant
from seektune.kernels import reference as plain
from seektune.kernels.dequantize import dequantize
from seektune.kernels.dispatch import (
    Kernel,
    batch_invariant_kernels,
    cpu_decode_kernels,
    is_static,
    static_kernels,
    training_kernels,
)
from seektune.kernels.invariant import in_double
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
from seektune.kernels.reference.expert_linear import gathered_linear, sort_by_expert
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.quantize import (
    hadamard,
    quantize_fp4,
    quantize_fp4_closely,
    quantize_fp8,
    recast_fp4_as_fp8,
)
from seektune.kernels.reference.rounded_linear import Rounding, lora_delta, rounded_expert_linear, rounded_linear
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

add_pairs = Kernel(plain.add_pairs, plain.add_pairs, "pairs")
clamped_swiglu = Kernel(
    plain.clamped_swiglu,
    eager.clamped_swiglu,
    "swiglu",
    cpu=cpu.clamped_swiglu,
    invariant=in_double(eager.clamped_swiglu),
)
encode_rows = Kernel(plain.encode_rows, plain.encode_rows, "fp8_grouped_mm")
expert_linear = Kernel(
    plain.expert_linear,
    plain.expert_linear,
    "expert_linear",
    invariant=invariant.expert_linear,
    deepseek="deep_gemm",
)
expert_mlp = Kernel(
    plain.expert_mlp, eager.expert_mlp, "expert_mlp", cpu=cpu.expert_mlp, invariant=invariant.expert_mlp
)
fake_quantize_fp4 = Kernel(plain.fake_quantize_fp4, plain.fake_quantize_fp4, "fake_quantize")
fake_quantize_fp8 = Kernel(plain.fake_quantize_fp8, plain.fake_quantize_fp8, "fake_quantize")
fake_quantize_weight = Kernel(plain.fake_quantize_weight, eager.fake_quantize_weight, "fake_quantize")
fp8_expert_linear = Kernel(
    plain.fp8_expert_linear,
    plain.fp8_expert_linear,
    "fp8_linear",
    invariant=invariant.fp8_expert_linear,
    deepseek="deep_gemm_fp8",
)
fp8_linear = Kernel(plain.fp8_linear, plain.fp8_linear, "fp8_linear", invariant=invariant.fp8_linear)
gate_scores = Kernel(plain.gate_scores, plain.gate_scores, invariant=in_double(plain.gate_scores))
gate_weights = Kernel(plain.gate_weights, plain.gate_weights, invariant=in_double(plain.gate_weights))
gather_tokens = Kernel(plain.gather_tokens, plain.gather_tokens, "pairs")
gathered_lowbit_linear = Kernel(plain.gathered_lowbit_linear, plain.gathered_lowbit_linear, "lowbit_linear")
grouped_linear = Kernel(
    plain.grouped_linear, plain.grouped_linear, cpu=cpu.grouped_linear, invariant=invariant.grouped_linear
)
hyper_collect = Kernel(plain.hyper_collect, plain.hyper_collect, invariant=in_double(plain.hyper_collect))
hyper_read = Kernel(plain.hyper_read, eager.hyper_read, "hyper", cpu=cpu.hyper_read, invariant=invariant.hyper_read)
hyper_write = Kernel(
    plain.hyper_write, eager.hyper_write, "hyper", cpu=cpu.hyper_write, invariant=in_double(eager.hyper_write)
)
index_divergence = Kernel(plain.index_divergence, eager.index_divergence)
index_recall = Kernel(plain.index_recall, plain.index_recall)
index_topk = Kernel(
    plain.index_topk,
    eager.index_topk,
    "index_scores",
    cpu=cpu.index_topk,
    invariant=in_double(eager.index_topk),
    waits=True,
    triton_waits=True,
)
linear = Kernel(plain.linear, plain.linear, cpu=cpu.linear, invariant=invariant.linear)
lowbit_expert_linear = Kernel(
    plain.lowbit_expert_linear, plain.lowbit_expert_linear, "lowbit_linear", invariant=invariant.lowbit_expert_linear
)
lowbit_linear = Kernel(plain.lowbit_linear, plain.lowbit_linear, "lowbit_linear", invariant=invariant.lowbit_linear)
pool_windows = Kernel(plain.pool_windows, eager.pool_windows, invariant=in_double(eager.pool_windows))
rms_norm = Kernel(plain.rms_norm, eager.rms_norm, "norm", cpu=cpu.rms_norm, invariant=in_double(eager.rms_norm))
rotate = Kernel(plain.rotate, eager.rotate, "rotation", cpu=cpu.rotate, invariant=in_double(eager.rotate))
norm_rope = Kernel(
    plain.norm_rope, eager.norm_rope, "rotation", cpu=cpu.norm_rope, invariant=in_double(eager.norm_rope)
)
route = Kernel(plain.route, plain.route, cpu=cpu.route, invariant=in_double(plain.route))
sinkhorn = Kernel(
    plain.sinkhorn, eager.sinkhorn, "sinkhorn", invariant=in_double(eager.sinkhorn), deepseek="tile_kernels"
)
sort_pairs = Kernel(plain.sort_pairs, plain.sort_pairs, cpu=cpu.sort_pairs)
sparse_attention = Kernel(
    plain.sparse_attention,
    eager.sparse_attention,
    "sparse_attention",
    cpu=cpu.sparse_attention,
    invariant=in_double(eager.sparse_attention),
    deepseek="flash_mla",
    waits=True,
)
linear_cross_entropy = Kernel(plain.linear_cross_entropy, eager.linear_cross_entropy, "linear_cross_entropy")
linear_divergence = Kernel(plain.linear_divergence, eager.linear_divergence)
linear_z_loss = Kernel(plain.linear_z_loss, eager.linear_z_loss)
token_logprobs = Kernel(
    plain.token_logprobs, eager.token_logprobs, "token_logprobs", invariant=invariant.token_logprobs
)
top_k_divergence = Kernel(plain.top_k_divergence, eager.top_k_divergence)
weighted_swiglu = Kernel(
    plain.weighted_swiglu,
    eager.weighted_swiglu,
    "swiglu",
    cpu=cpu.weighted_swiglu,
    invariant=invariant.weighted_swiglu,
)
window_logsumexp = Kernel(plain.window_logsumexp, plain.window_logsumexp)

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
    "add_pairs",
    "batch_invariant_kernels",
    "clamped_swiglu",
    "cpu_decode_kernels",
    "decoded_columns",
    "dequantize",
    "dequantize_fp4",
    "dequantize_fp8",
    "dequantize_nvfp4",
    "encode_rows",
    "expert_linear",
    "expert_mlp",
    "fake_quantize_fp4",
    "fake_quantize_fp8",
    "fake_quantize_weight",
    "fp8_expert_linear",
    "fp8_linear",
    "gate_scores",
    "gate_weights",
    "gather_tokens",
    "gathered_linear",
    "gathered_lowbit_linear",
    "grouped_linear",
    "hadamard",
    "hyper_collect",
    "hyper_read",
    "hyper_write",
    "index_divergence",
    "index_recall",
    "index_topk",
    "is_static",
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
    "static_kernels",
    "token_logprobs",
    "top_k_divergence",
    "training_kernels",
    "upcast",
    "values_per_element",
    "weighted_swiglu",
    "window_logsumexp",
]
