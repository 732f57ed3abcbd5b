"""Rows of tokens for token-expert pairs, and sums of the pairs of each token.

Shapes: N tokens, P token-expert pairs sorted by expert, the same number for every token, D width.
"""

from torch import Tensor

from seektune.kernels.reference.precision import upcast


def gather_tokens(x_ND: Tensor, tokens_P: Tensor) -> Tensor:
    """The row of each pair's token, `[P, D]`."""
    return x_ND[tokens_P]


def add_pairs(rows_PD: Tensor, tokens_P: Tensor, tokens: int) -> Tensor:
    """The sum of each token's rows in the order of experts, at least fp32 `[N, D]`, without atomics."""
    rows_PD = upcast(rows_PD)
    first, *others = rows_PD[tokens_P.argsort(stable=True)].unflatten(0, (tokens, -1)).unbind(1)
    return sum(others, first)
