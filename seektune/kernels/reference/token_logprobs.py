"""Log-probabilities of given tokens from the LM head's input, so that the logits of all tokens never exist at once."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast

CHUNK = 1024
"""Tokens whose logits exist at a time."""


def token_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """`log softmax(hidden @ weight.T)[target]` of each of N tokens, fp32 `[N]`; no target is ignored.

    Chunks of tokens are recomputed in backward, so memory is that of `CHUNK` x V logits.
    """
    weight = upcast(weight_VD)
    chunks = zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
    return torch.cat(
        [checkpoint(_chunk, x, weight, y, use_reentrant=False, preserve_rng_state=False) for x, y in chunks]
    )


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logprobs = torch.log_softmax(upcast(hidden) @ weight.T, dim=1)
    return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1)
