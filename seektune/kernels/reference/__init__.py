"""Plain torch definitions of the kernels: short, differentiable, in memory linear in tokens."""

from seektune.kernels.reference.expert_linear import expert_linear, sort_pairs
from seektune.kernels.reference.expert_mlp import expert_mlp
from seektune.kernels.reference.hyper import hyper_collect, hyper_read, hyper_write
from seektune.kernels.reference.index_scores import index_topk
from seektune.kernels.reference.linear import grouped_linear, linear
from seektune.kernels.reference.norm import rms_norm, rotate, rotated_unit
from seektune.kernels.reference.packed_linear import packed_expert_linear, packed_linear
from seektune.kernels.reference.pool import pool_windows
from seektune.kernels.reference.quantized_linear import quantized_expert_linear
from seektune.kernels.reference.route import route
from seektune.kernels.reference.sinkhorn import sinkhorn
from seektune.kernels.reference.sparse_attention import sparse_attention
from seektune.kernels.reference.swiglu import clamped_swiglu
from seektune.kernels.reference.vocabulary_loss import vocabulary_loss

__all__ = [
    "clamped_swiglu",
    "expert_linear",
    "expert_mlp",
    "grouped_linear",
    "hyper_collect",
    "hyper_read",
    "hyper_write",
    "index_topk",
    "linear",
    "packed_expert_linear",
    "packed_linear",
    "pool_windows",
    "quantized_expert_linear",
    "rms_norm",
    "rotate",
    "rotated_unit",
    "route",
    "sinkhorn",
    "sort_pairs",
    "sparse_attention",
    "vocabulary_loss",
]
