"""Divergence of an LM head's distributions from a teacher's, with gradients computed in forward: logits are computed
once.

Shapes: N tokens, D width, E the teacher's width, V vocabulary, K kept tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.head_products import HeadGradients, head_logits
from seektune.kernels.reference.linear_divergence import CHUNK
from seektune.kernels.reference.precision import upcast


def linear_divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_NE: Tensor,
    teacher_weight_VE: Tensor,
    weights_N: Tensor | None,
    temperature: float,
    reverse: bool,
) -> Tensor:
    """See `reference.linear_divergence`. Saves the gradients, `[N, D]` and `[V, D]`, if they may be needed."""
    teacher_NE = teacher_NE.detach()
    teacher_weight_VE = teacher_weight_VE.detach()

    def log_p_of(part: slice, log_q: Tensor) -> Tensor:
        return _log_softmax(upcast(teacher_NE[part]), teacher_weight_VE, temperature)

    return _divergence(hidden_ND, weight_VD, log_p_of, weights_N, temperature, reverse)


def top_k_divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_NK: Tensor,
    logprobs_NL: Tensor,
    weights_N: Tensor | None,
    temperature: float,
    reverse: bool,
) -> Tensor:
    """See `reference.top_k_divergence`; saves what `linear_divergence` does.

    The divergence over K + 1 events and its gradient are those from a teacher over the vocabulary that shares out its
    rest as the model does: `p_rest q / q_rest` for each other token.
    """
    logprobs_NL = logprobs_NL.detach()

    def log_p_of(part: slice, log_q: Tensor) -> Tensor:
        ids = ids_NK[part].long()
        log_p = logprobs_NL[part].to(log_q.dtype)
        others = log_q.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
        return (log_q + (log_p[:, -1:] - others)).scatter_(1, ids, log_p[:, :-1])

    return _divergence(hidden_ND, weight_VD, log_p_of, weights_N, temperature, reverse)


LogProbabilities = Callable[[slice, Tensor], Tensor]
"""The teacher's of some tokens, `[N, V]`, a constant, given the model's own."""


def _divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    log_p_of: LogProbabilities,
    weights_N: Tensor | None,
    temperature: float,
    reverse: bool,
) -> Tensor:
    out: Tensor = _Divergence.apply(
        hidden_ND, weight_VD, log_p_of, weights_N, temperature, reverse, torch.is_grad_enabled()
    )
    return out


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, log_p_of, weights_N, temperature, reverse, is_training):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight = (is_training and needs for needs in ctx.needs_input_grad[:2])
        gradients = HeadGradients(hidden_ND, weight_VD, needs_hidden, needs_weight)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        losses = [weight_VD.new_zeros((), dtype=wide)]
        for start in range(0, len(hidden_ND), CHUNK):
            part = slice(start, start + CHUNK)
            hidden = upcast(hidden_ND[part])
            log_q = _log_softmax(hidden, weight_VD, temperature)
            log_p = log_p_of(part, log_q)
            terms, slope = (_reverse if reverse else _forward)(log_q, log_p)
            weights = temperature if weights_N is None else temperature * weights_N[part].unsqueeze(1)
            losses.append((terms * weights).sum() * temperature)
            slope *= weights
            gradients.add(part, slope, hidden)
        ctx.gradients = gradients.found()
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gradients = (None if x is None else x * grad for x in ctx.gradients)
        return *gradients, *([None] * 5)


def _log_softmax(hidden: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits = head_logits(hidden, weight_VD).div_(temperature)
    return logits.sub_(torch.logsumexp(logits, dim=1, keepdim=True))


def _forward(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) of each token, `[N, 1]`, and its gradient by the scaled logits, in the memory of `log_q`."""
    p = log_p.exp()
    terms = (log_p.sub_(log_q) * p).sum(dim=1, keepdim=True)
    return terms, log_q.exp_().sub_(p)


def _reverse(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """As `_forward`, of KL(q || p)."""
    ratio = log_q - log_p
    q = log_q.exp_()
    terms = (ratio * q).sum(dim=1, keepdim=True)
    return terms, ratio.sub_(terms).mul_(q)
