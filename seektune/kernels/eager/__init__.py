"""The operations of `reference`, optimized in eager torch: few passes over memory, chunks that fit into a cache."""

from seektune.kernels.eager.expert_mlp import expert_mlp
from seektune.kernels.eager.fake_weight import fake_quantize_weight
from seektune.kernels.eager.hyper import hyper_read, hyper_write
from seektune.kernels.eager.index_divergence import index_divergence
from seektune.kernels.eager.index_scores import index_topk
from seektune.kernels.eager.linear_cross_entropy import linear_cross_entropy, linear_z_loss
from seektune.kernels.eager.linear_divergence import linear_divergence, top_k_divergence
from seektune.kernels.eager.norm import norm_rope, rms_norm, rotate
from seektune.kernels.eager.pool import pool_windows
from seektune.kernels.eager.sinkhorn import sinkhorn
from seektune.kernels.eager.sparse_attention import sparse_attention
from seektune.kernels.eager.swiglu import clamped_swiglu, weighted_swiglu
from seektune.kernels.eager.token_logprobs import token_logprobs

__all__ = [
    "clamped_swiglu",
    "expert_mlp",
    "fake_quantize_weight",
    "hyper_read",
    "hyper_write",
    "index_divergence",
    "index_topk",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_z_loss",
    "norm_rope",
    "pool_windows",
    "rms_norm",
    "rotate",
    "sinkhorn",
    "sparse_attention",
    "token_logprobs",
    "top_k_divergence",
    "weighted_swiglu",
]
