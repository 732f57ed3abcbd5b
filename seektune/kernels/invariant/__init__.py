"""Batch-invariant twins: what they compute of a token does not depend on which other tokens are computed with it.

The order in which a product or a sum is added up, and with it the last bits of a result, depends on the number of rows:
a decode step of one token and a training forward of many differ. Products of tokens with a matrix are computed here in
tiles of one shape (`tiles`), and everything else in fp64, rounded once (`double`). Gradients are those of `eager`.
"""

from seektune.kernels.invariant.double import hyper_read, in_double
from seektune.kernels.invariant.experts import (
    expert_linear,
    expert_mlp,
    fp8_expert_linear,
    fp8_linear,
    lowbit_expert_linear,
    lowbit_linear,
    weighted_swiglu,
)
from seektune.kernels.invariant.logprobs import token_logprobs
from seektune.kernels.invariant.tiles import grouped_linear, linear

__all__ = [
    "expert_linear",
    "expert_mlp",
    "fp8_expert_linear",
    "fp8_linear",
    "grouped_linear",
    "hyper_read",
    "in_double",
    "linear",
    "lowbit_expert_linear",
    "lowbit_linear",
    "token_logprobs",
    "weighted_swiglu",
]
