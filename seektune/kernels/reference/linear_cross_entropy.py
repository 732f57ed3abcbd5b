"""LM head and cross-entropy in one operation, so that the logits of all tokens never exist at once."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.token_logprobs import CHUNK, token_logprobs


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """Sum of `-log softmax(hidden @ weight.T)[target]` in fp32 over N tokens; no target is ignored.

    `weights_N`, fp32, multiply the tokens' terms and are constants; None is 1 for each.
    """
    logprobs_N = token_logprobs(hidden_ND, weight_VD, targets_N)
    return -(logprobs_N if weights_N is None else logprobs_N * weights_N).sum()


def linear_z_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None, z_weight: float
) -> tuple[Tensor, Tensor]:
    """The same sum with `z_weight * log_z ** 2` added to each token's term, `log_z = logsumexp(hidden @ weight.T)`.

    Returns:
        The sum, and that of the squares alone, without gradient.
    """
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N, weights_N)
    weight = upcast(weight_VD)
    chunks = hidden_ND.split(CHUNK)
    squares = [checkpoint(_squared_log_z, x, weight, use_reentrant=False, preserve_rng_state=False) for x in chunks]
    squares_N = torch.cat(squares)
    squared = (squares_N if weights_N is None else squares_N * weights_N).sum()
    return loss + z_weight * squared, squared.detach()


def _squared_log_z(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.logsumexp(upcast(hidden) @ weight.T, dim=1) ** 2
