"""Token dispatch: send tokens to their experts and add up the outputs; expert parallelism replaces the local one.

Shapes: N tokens, K experts per token, P = N * K token-expert pairs, D width.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from seektune.kernels import is_static, sort_pairs
from seektune.model.gate import Routing


class RunExperts(Protocol):
    """Runs the experts of this device."""

    def __call__(self, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor | None = None) -> Tensor:
        """Sum of each token's expert outputs, fp32 `[N, D]`; without `tokens_P` each row is a pair of its own."""
        ...

    def gathered(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The same of few tokens, in shapes that do not depend on their experts."""
        ...


Finish: TypeAlias = Callable[[], Tensor]
"""Waits for what is still to come and gives the sum of each token's expert outputs, fp32 `[N, D]`; called once."""


class Dispatch(Protocol):
    """Sends tokens to their experts and combines the outputs."""

    def start(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Finish:
        """Start sending; what is computed before `Finish` is called overlaps with the messages."""
        ...


class LocalDispatch:
    """All experts are on this device: pairs are sorted by expert, and experts add to their tokens in order."""

    def start(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Finish:
        """Compute at once. Deterministic: an expert has each token at most once, so additions do not collide."""
        if is_static():
            gathered_ND = experts.gathered(x_ND, routing.experts_NK, routing.weights_NK)
            return lambda: gathered_ND
        tokens_P, weights_P, counts = self.sort(routing)
        out_ND = experts(x_ND, weights_P, counts, tokens_P)
        return lambda: out_ND

    def sort(self, routing: Routing) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens and weights of the pairs sorted by expert, and the number of pairs of each expert."""
        tokens_P, weights_P, counts_E = sort_pairs(routing.experts_NK, routing.weights_NK, routing.scores_NE.shape[1])
        return tokens_P, weights_P, counts_E.tolist()
