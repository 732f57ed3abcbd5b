"""The same operations as in `reference`, written for speed in plain torch: few passes, chunks that stay in a cache."""

from seektune.kernels.fused.expert_mlp import expert_mlp
from seektune.kernels.fused.hyper import hyper_read, hyper_write
from seektune.kernels.fused.index_scores import index_topk
from seektune.kernels.fused.norm import rms_norm, rotate, rotated_unit
from seektune.kernels.fused.pool import pool_windows
from seektune.kernels.fused.sinkhorn import sinkhorn
from seektune.kernels.fused.sparse_attention import sparse_attention
from seektune.kernels.fused.swiglu import clamped_swiglu
from seektune.kernels.fused.vocabulary_loss import vocabulary_loss

__all__ = [
    "clamped_swiglu",
    "expert_mlp",
    "hyper_read",
    "hyper_write",
    "index_topk",
    "pool_windows",
    "rms_norm",
    "rotate",
    "rotated_unit",
    "sinkhorn",
    "sparse_attention",
    "vocabulary_loss",
]
