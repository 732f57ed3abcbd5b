"""Divergence of an LM head's distributions from the k likeliest tokens of a teacher's, whose rest is one event.

Shapes: N tokens, D width, V vocabulary, K kept tokens.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.linear_divergence import CHUNK
from seektune.kernels.reference.precision import upcast


def top_k_divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_NK: Tensor,
    logprobs_NL: Tensor,
    weights_N: Tensor | None,
    temperature: float,
    reverse: bool,
) -> Tensor:
    """Sum of `temperature^2 KL(p || q)` over N tokens, fp32; with `reverse`, of `KL(q || p)`.

    `q` is `softmax(hidden @ weight.T / temperature)`. Both distributions are over K + 1 events: the tokens `ids_NK` and
    all others together, so that the divergence is at most that over the vocabulary, and equals it with K = V.

    Args:
        hidden_ND: the head's input.
        weight_VD: its weight.
        ids_NK: different tokens in each row, integers.
        logprobs_NL: the teacher's, at this temperature: of these tokens, and at last of all others together.
        weights_N: factors of the tokens' terms, fp32; None is 1 for each.
        temperature: divides the logits.
        reverse: which of the two is on the left.
    """
    weights_N = torch.ones_like(upcast(hidden_ND[:, 0])) if weights_N is None else weights_N
    student = upcast(weight_VD)
    parts = zip(*(x.split(CHUNK) for x in (hidden_ND, ids_NK, logprobs_NL.detach(), weights_N)), strict=True)
    sums = [
        checkpoint(_chunk, x, student, *rest, temperature, reverse, use_reentrant=False, preserve_rng_state=False)
        for x, *rest in parts
    ]
    return torch.stack(sums).sum()


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    weights: Tensor,
    temperature: float,
    reverse: bool,
) -> Tensor:
    whole = torch.log_softmax(upcast(hidden) @ weight.T / temperature, dim=1)
    log_p = logprobs.to(whole.dtype)
    log_q = whole.gather(1, ids.long())
    if ids.shape[1] < len(weight):
        others = whole.scatter(1, ids.long(), -torch.inf).logsumexp(dim=1, keepdim=True)
        log_q = torch.cat([log_q, others], dim=1)
    else:
        log_p = log_p[:, :-1]
    terms = log_q.exp() * (log_q - log_p) if reverse else log_p.exp() * (log_p - log_q)
    return temperature**2 * (terms.sum(dim=1) * weights).sum()
