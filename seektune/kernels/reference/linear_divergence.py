"""Divergence of two LM heads' distributions over the whole vocabulary, without the logits of all tokens at once.

Shapes: N tokens, D width, E the teacher's width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune.kernels.reference.precision import upcast

CHUNK = 512
"""Tokens whose logits, of both models, exist at a time."""


def linear_divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_NE: Tensor,
    teacher_weight_VE: Tensor,
    weights_N: Tensor | None,
    temperature: float,
    reverse: bool,
) -> Tensor:
    """Sum of `temperature^2 KL(p || q)` over N tokens, fp32; with `reverse`, of `KL(q || p)`.

    `q` is `softmax(hidden @ weight.T / temperature)` and `p` the teacher's, a constant. `weights_N`, fp32, multiply the
    tokens' terms; None is 1 for each. Chunks of tokens are recomputed in backward.
    """
    weights_N = torch.ones_like(upcast(hidden_ND[:, 0])) if weights_N is None else weights_N
    student = upcast(weight_VD)
    teacher = upcast(teacher_weight_VE.detach())
    parts = zip(*(x.split(CHUNK) for x in (hidden_ND, teacher_NE.detach(), weights_N)), strict=True)
    sums = [
        checkpoint(
            _chunk, x, student, y, teacher, w, temperature, reverse, use_reentrant=False, preserve_rng_state=False
        )
        for x, y, w in parts
    ]
    return torch.stack(sums).sum()


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    weights: Tensor,
    temperature: float,
    reverse: bool,
) -> Tensor:
    log_q = torch.log_softmax(upcast(hidden) @ weight.T / temperature, dim=1)
    log_p = torch.log_softmax(upcast(teacher_hidden) @ teacher_weight.T / temperature, dim=1)
    terms = log_q.exp() * (log_q - log_p) if reverse else log_p.exp() * (log_p - log_q)
    return temperature**2 * (terms.sum(dim=1) * weights).sum()
