"""Where parallelism plugs into the model: carrying tokens to the experts that they chose, by default on this device.

Shapes: N tokens, K experts per token, P = N * K token-expert pairs, D width.
"""

from typing import Protocol

from torch import Tensor

from seektune.kernels import sort_pairs
from seektune.model.gate import Routing


class RunExperts(Protocol):
    """The experts of this device."""

    def __call__(self, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor | None = None) -> Tensor:
        """Sum of each token's expert outputs, fp32 `[N, D]`; without `tokens_P` each row is a pair of its own."""
        ...


class Dispatch(Protocol):
    """Carries tokens to experts and their outputs back."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Tensor:
        """Sum of each token's expert outputs, fp32 `[N, D]`."""
        ...


class LocalDispatch:
    """All experts are here: the pairs are sorted by expert once, and the experts add to their tokens in order."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Tensor:
        """Deterministic: an expert names a token once, so no two additions meet."""
        tokens_P, weights_P, counts = self.sort(routing)
        return experts(x_ND, weights_P, counts, tokens_P)

    def sort(self, routing: Routing) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens and weights of the pairs in the order of their experts, and each expert's number of them."""
        tokens_P, weights_P, counts_E = sort_pairs(routing.experts_NK, routing.weights_NK, routing.scores_NE.shape[1])
        return tokens_P, weights_P, counts_E.tolist()
