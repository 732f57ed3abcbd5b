"""Matrix products of tokens that are sorted by expert.

Shapes: N token-expert pairs, T tokens, K experts per token, E experts, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sort_by_expert(experts_TK: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Stable order `[T*K]` of the flattened pairs by expert, and the number of pairs of each expert `[E]`."""
    flat = experts_TK.flatten()
    return flat.argsort(stable=True), torch.bincount(flat, minlength=n_experts)


def sort_pairs(experts_NK: Tensor, weights_NK: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs sorted stably by expert: tokens `[P]`, weights `[P]`, and the number of pairs of each expert `[E]`."""
    order, counts_E = sort_by_expert(experts_NK, n_experts)
    return order // experts_NK.shape[1], weights_NK.flatten()[order], counts_E


def gathered_linear(x_NI: Tensor, experts_N: Tensor, weight_EOI: Tensor) -> Tensor:
    """`[N, O]`: each row times its expert's matrix, in x's dtype; shapes do not depend on the experts.

    It copies the matrix of each row, so it is for few rows.
    """
    return (weight_EOI.index_select(0, experts_N).to(x_NI.dtype) @ x_NI.unsqueeze(-1)).squeeze(-1)


def expert_linear(x_NI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """`[N, O]`: the first `counts[0]` rows times expert 0's matrix, the next `counts[1]` times expert 1's, and so on.

    Experts without tokens are allowed and get a zero gradient.
    """
    assert sum(counts) == x_NI.shape[0]
    parts = x_NI.split(counts)
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weight_EOI.unbind(), strict=True)])
