"""Reference implementations of all kernels in plain torch: short, differentiable, memory linear in tokens."""

from seektune.kernels.reference.expert_linear import expert_linear, sort_pairs
from seektune.kernels.reference.expert_mlp import expert_mlp
from seektune.kernels.reference.fake_weight import fake_quantize_weight
from seektune.kernels.reference.fp8_linear import fp8_expert_linear, fp8_linear
from seektune.kernels.reference.hyper import hyper_collect, hyper_read, hyper_write
from seektune.kernels.reference.index_divergence import index_divergence, index_recall, window_logsumexp
from seektune.kernels.reference.index_scores import index_topk
from seektune.kernels.reference.linear import grouped_linear, linear
from seektune.kernels.reference.linear_cross_entropy import linear_cross_entropy, linear_z_loss
from seektune.kernels.reference.linear_divergence import linear_divergence
from seektune.kernels.reference.lowbit_linear import gathered_lowbit_linear, lowbit_expert_linear, lowbit_linear
from seektune.kernels.reference.norm import norm_rope, rms_norm, rotate
from seektune.kernels.reference.pairs import add_pairs, gather_tokens
from seektune.kernels.reference.pool import pool_windows
from seektune.kernels.reference.quantize import encode_rows, fake_quantize_fp4, fake_quantize_fp8
from seektune.kernels.reference.route import gate_scores, gate_weights, route
from seektune.kernels.reference.sinkhorn import sinkhorn
from seektune.kernels.reference.sparse_attention import sparse_attention
from seektune.kernels.reference.swiglu import clamped_swiglu, weighted_swiglu
from seektune.kernels.reference.token_logprobs import token_logprobs
from seektune.kernels.reference.top_k_divergence import top_k_divergence

__all__ = [
    "add_pairs",
    "clamped_swiglu",
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
    "gathered_lowbit_linear",
    "grouped_linear",
    "hyper_collect",
    "hyper_read",
    "hyper_write",
    "index_divergence",
    "index_recall",
    "index_topk",
    "linear",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_z_loss",
    "lowbit_expert_linear",
    "lowbit_linear",
    "norm_rope",
    "pool_windows",
    "rms_norm",
    "rotate",
    "route",
    "sinkhorn",
    "sort_pairs",
    "sparse_attention",
    "token_logprobs",
    "top_k_divergence",
    "weighted_swiglu",
    "window_logsumexp",
]
