"""Where parallelism plugs into the model: carrying tokens to the experts that they chose, by default on this device.

Shapes: N tokens, K experts per token, P = N * K token-expert pairs, D width.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from seektune.kernels import sort_by_expert, upcast
from seektune.model.gate import Routing

RunExperts = Callable[[Tensor, Tensor, list[int]], Tensor]
"""Pairs sorted by expert `[P, D]`, their weights `[P]` and the experts' counts into outputs `[P, D]`."""


class Dispatch(Protocol):
    """Carries tokens to experts and their outputs back."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Tensor:
        """Sum of each token's expert outputs, fp32 `[N, D]`."""
        ...


class LocalDispatch:
    """All experts are here: sort the pairs by expert once, run, put back, sum over a token's experts in order."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Tensor:
        """Deterministic: a gather each way and a sum, no atomic addition."""
        k = routing.experts_NK.shape[1]
        order, counts = self.sort(routing)
        out_PD = experts(x_ND[order // k], routing.weights_NK.flatten()[order], counts)
        return upcast(out_PD[order.argsort()].unflatten(0, (-1, k))).sum(dim=1)

    def sort(self, routing: Routing) -> tuple[Tensor, list[int]]:
        """The pairs in the order of their experts, `[P]`, and each expert's number of them."""
        order, counts_E = sort_by_expert(routing.experts_NK, routing.scores_NE.shape[1])
        return order, counts_E.tolist()
