"""LM head and cross-entropy in one operation, so that the logits of all tokens never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast

CHUNK = 1024
"""Tokens whose logits exist at a time."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of `-log softmax(hidden @ weight.T)[target]` in fp32 over N tokens; no target is ignored.

    Chunks of tokens are recomputed in backward, so memory is that of `CHUNK` x V logits.
    """
    weight = upcast(weight_VD)
    chunks = zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
    losses = [checkpoint(_chunk, x, weight, y, use_reentrant=False, preserve_rng_state=False) for x, y in chunks]
    return torch.stack(losses).sum()


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(upcast(hidden), weight), targets, reduction="sum")
