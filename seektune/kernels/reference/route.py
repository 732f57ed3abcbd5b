"""The gate: experts and weights of each token from its logits.

Shapes: N tokens, E experts, K experts per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def route(logits_NE: Tensor, bias_E: Tensor, k: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Experts `[N, K]` with the largest score plus bias, their weights, and all scores (paper section 2.1)."""
    scores = gate_scores(logits_NE)
    experts = (scores + bias_E).topk(k, dim=-1).indices
    return experts, gate_weights(scores, experts, factor), scores


def gate_scores(logits_NE: Tensor) -> Tensor:
    """`sqrt(softplus(x))`."""
    # a logit below about -100 gives 0, where the slope of the square root is infinite
    return F.softplus(logits_NE).clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def gate_weights(scores_NE: Tensor, experts_NK: Tensor, factor: float) -> Tensor:
    """Scores of the chosen experts, normalized and scaled."""
    weights = scores_NE.gather(1, experts_NK)
    return factor * weights / weights.sum(dim=-1, keepdim=True)
