"""Mixture of experts: gate, routed experts and shared expert.

Shapes: B rows, T tokens, N tokens of all rows, P token-expert pairs, D width, F expert width, E experts,
K experts per token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from seektune.kernels import clamped_swiglu, expert_mlp, gathered_linear, upcast
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import HashGate, RoutingLedger, TopKGate
from seektune.model.linear import Linear
from seektune.model.token_dispatch import Dispatch, LocalDispatch
from seektune.sequence import SequenceLayout

PairProduct: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Rows of pairs `[P, I]` times the matrices of their experts `[P]`."""


class Experts(nn.Module):
    """All routed experts of a layer, stacked: `w1` (gate) and `w3` (up) `[E, F, D]`, `w2` (down) `[E, D, F]`."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        experts = config.n_routed_experts
        width = config.hidden_size
        inner = config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w1 = nn.Parameter(torch.empty(experts, inner, width, device=device, dtype=dtype))
        self.w2 = nn.Parameter(torch.empty(experts, width, inner, device=device, dtype=dtype))
        self.w3 = nn.Parameter(torch.empty(experts, inner, width, device=device, dtype=dtype))

    def forward(self, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor | None = None) -> Tensor:
        """Sum of each token's experts, fp32 `[N, D]`, for pairs sorted by expert; pair p is token `tokens_P[p]`.

        Without `tokens_P`, each row is a pair of its own, and the result is each pair's output.
        """
        tokens_P = torch.arange(len(x_ND), device=x_ND.device) if tokens_P is None else tokens_P
        return expert_mlp(x_ND, tokens_P, weights_P, self.w1, self.w2, self.w3, counts, self.limit)

    def gathered(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Sum of each token's experts, fp32 `[N, D]`, for few tokens; see `static_kernels`."""
        products = [partial(gathered_linear, weight_EOI=w) for w in (self.w1, self.w2, self.w3)]
        return gathered_mlp(x_ND, experts_NK, weights_NK, products, self.limit)


def gathered_mlp(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, products: Sequence[PairProduct], limit: float
) -> Tensor:
    """Sum of each token's experts, fp32 `[N, D]`, by the products of pairs with `w1`, `w2` and `w3`.

    As `expert_mlp`, but a token's outputs are added in the order of its choices, and no shape depends on them.
    """
    w1, w2, w3 = products
    pairs = experts_NK.flatten()
    x_PD = x_ND.unsqueeze(1).expand(-1, experts_NK.shape[1], -1).flatten(0, 1)
    inner_PF = weights_NK.flatten()[:, None] * clamped_swiglu(w1(x_PD, pairs), w3(x_PD, pairs), limit)
    out_PD = upcast(w2(inner_PF.to(x_ND.dtype), pairs))
    return out_PD.view(*experts_NK.shape, -1).sum(dim=1)


class SharedExpert(nn.Module):
    """The expert of every token, with the same clamp as the routed ones."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        width = config.hidden_size
        inner = config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w1 = Linear(width, inner, device, dtype)
        self.w2 = Linear(inner, width, device, dtype)
        self.w3 = Linear(width, inner, device, dtype)

    def forward(self, x_ND: Tensor) -> Tensor:
        """`[N, D]`."""
        return self.w2(clamped_swiglu(self.w1(x_ND), self.w3(x_ND), self.limit).to(x_ND.dtype))


class MoE(nn.Module):
    """Sum of the chosen experts and the shared expert, in fp32, rounded once (paper section 2.1; official `MoE`)."""

    def __init__(self, config: DeepseekV4Config, layer: int, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        self.layer = layer
        gate = HashGate if layer < config.num_hash_layers else TopKGate
        self.gate = gate(config, device, dtype)
        self.experts = Experts(config, device, dtype)
        self.shared_experts = SharedExpert(config, device, dtype)
        self.dispatch: Dispatch = LocalDispatch()

    def forward(
        self, x_BTD: Tensor, tokens_BT: Tensor | None, layout: SequenceLayout, ledger: RoutingLedger | None
    ) -> Tensor:
        """`[B, T, D]`; a hash gate needs the token ids."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.gate(x_ND, None if tokens_BT is None else tokens_BT.flatten())
        if ledger is not None:
            ledger.record(self.layer, routing, layout)
        routed = self.dispatch.start(x_ND, routing, self.experts)
        # tokens travel to the experts of other processes meanwhile
        shared = upcast(self.shared_experts(x_ND))
        return (routed() + shared).to(x_BTD.dtype).view_as(x_BTD)

    def join(self, nothing_ND: Tensor) -> None:
        """Take part, without tokens `[0, D]`, in the forward pass of processes that share the experts."""
        if isinstance(self.dispatch, LocalDispatch):
            return
        routing = self.gate(nothing_ND, torch.empty(0, dtype=torch.int64, device=nothing_ND.device))
        self.dispatch.start(nothing_ND, routing, self.experts)()
