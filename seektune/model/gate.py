"""Gates: choose each token's experts by scores or, in the first layers, by token id.

Shapes: B rows, T tokens, N tokens of all rows, D width, E experts, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from seektune.kernels import gate_scores, gate_weights, linear, route, upcast
from seektune.model.config import DeepseekV4Config
from seektune.model.indexer_loss import IndexerLoss, IndexerTraining
from seektune.sequence import SequenceLayout


@dataclass(frozen=True)
class Routing:
    """Experts of every token and their fp32 weights, both `[N, K]`; all scores, fp32 `[N, E]`."""

    experts_NK: Tensor
    weights_NK: Tensor
    scores_NE: Tensor


class RoutingLedger:
    """Records the choices of one forward pass by layer id; the MTP block's id is `num_hidden_layers`.

    Entries are set, not added, so that a recomputed forward writes the same values again. Not a dataclass: module
    wrappers copy dataclasses, and values written to a copy would be lost.
    """

    def __init__(self, balance_loss: bool = True, indexers: IndexerTraining | None = None):
        self.balance_loss = balance_loss
        self.indexers = indexers
        """How indexers are trained; None if they are frozen."""
        self.indexer_losses: dict[int, IndexerLoss] = {}
        """Of each layer; those without an indexer have no loss."""
        self.loads: dict[int, Tensor] = {}
        """Tokens routed to each expert, int64 `[E]`, without padding."""
        self.balance: dict[int, Tensor] = {}
        """Sum over documents of `tokens * sum_i f_i P_i`; divided by the tokens of the step it is the balance loss.

        Devices that share rows each hold an equal part of it.
        """

    def new_indexer_loss(self, layer: int) -> IndexerLoss | None:
        """A new `IndexerLoss` for one layer; None if indexers are frozen.

        Where backward recomputes the layer it has the recall of the first forward.
        """
        if self.indexers is None:
            return None
        earlier = self.indexer_losses.get(layer)
        self.indexer_losses[layer] = IndexerLoss(self.indexers, None if earlier is None else earlier.recall)
        return self.indexer_losses[layer]

    def record(self, layer: int, routing: Routing, layout: SequenceLayout) -> None:
        """Record the routing of one layer."""
        chosen_NE = torch.zeros_like(routing.scores_NE).scatter_(1, routing.experts_NK, 1.0)
        chosen_NE = chosen_NE * layout.real.flatten()[:, None]
        self.loads[layer] = chosen_NE.detach().sum(dim=0).long()
        if self.balance_loss:
            self.balance[layer] = _sequence_balance(routing.scores_NE, chosen_NE, layout)


class Gate(nn.Module):
    """Scores `sqrt(softplus(W x))` in fp32; weights are the chosen experts' scores, normalized and scaled."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        self.experts_per_token = config.num_experts_per_tok
        self.factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size, device=device, dtype=dtype))

    def logits(self, x_ND: Tensor) -> Tensor:
        """`[N, E]`."""
        return linear(upcast(x_ND), upcast(self.weight))

    def forward(self, x_ND: Tensor, tokens_N: Tensor | None) -> Routing:
        """Route N tokens (paper section 2.1; official `Gate`)."""
        raise NotImplementedError


class TopKGate(Gate):
    """Chooses the experts with the largest score plus `bias`, which balances loads and is not in weights (noaux_tc)."""

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__(config, device, dtype)
        self.bias: Tensor
        self.register_buffer("bias", torch.empty(config.n_routed_experts, device=device, dtype=torch.float32))

    def forward(self, x_ND: Tensor, tokens_N: Tensor | None) -> Routing:
        """Route to the top K by biased score."""
        return Routing(*route(self.logits(x_ND), self.bias, self.experts_per_token, self.factor))


class HashGate(Gate):
    """Chooses the experts that the table `tid2eid` lists for the token's id.

    A row may list an expert twice. Weights are then normalized over all K slots, but the expert's output is added once,
    as in the official code (`y[idx] += ...` writes a repeated index once); the released logits depend on it.
    """

    def __init__(self, config: DeepseekV4Config, device: torch.device | None, dtype: torch.dtype):
        super().__init__(config, device, dtype)
        self.tid2eid: Tensor
        table = torch.empty(config.vocab_size, config.num_experts_per_tok, device=device, dtype=torch.int64)
        self.register_buffer("tid2eid", table)

    def is_valid(self) -> bool:
        """Whether every entry of the table is an expert's index."""
        return bool(((self.tid2eid >= 0) & (self.tid2eid < self.weight.shape[0])).all())

    def forward(self, x_ND: Tensor, tokens_N: Tensor | None) -> Routing:
        """Route by the table's row of each id; a repeated expert keeps its weight in its first slot only."""
        if tokens_N is None:
            raise ValueError("a hash layer needs the token ids, but got none")
        scores_NE = gate_scores(self.logits(x_ND))
        experts_NK = self.tid2eid[tokens_N]
        same_NKK = experts_NK.unsqueeze(2) == experts_NK.unsqueeze(1)
        repeated_NK = same_NKK.tril(diagonal=-1).any(dim=2)
        weights_NK = gate_weights(scores_NE, experts_NK, self.factor).masked_fill(repeated_NK, 0.0)
        return Routing(experts_NK, weights_NK, scores_NE)


def _sequence_balance(scores_NE: Tensor, chosen_NE: Tensor, layout: SequenceLayout) -> Tensor:
    """Sequence-wise balance loss of DeepSeek-V3 (its equation 17), each document weighted by its tokens.

    f_i = E/(K n) * (tokens of the document that chose i), P_i = mean normalized score of i over the document.
    """
    document_BT, documents = layout.numbered()
    document_N = document_BT.flatten()
    real = layout.real.flatten()
    share_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True) * real[:, None]
    experts = scores_NE.shape[1]
    shape = (documents, scores_NE.shape[1])
    chosen = layout.total(scores_NE.new_zeros(shape).index_add(0, document_N, chosen_NE))
    share = layout.total(scores_NE.new_zeros(shape).index_add(0, document_N, share_NE))
    # n f_i P_i = E / (K n) * chosen_i * share_i, and K n is the number of choices
    total = (experts * (chosen * share).sum(dim=-1) / chosen.sum(dim=-1).clamp(min=1)).sum()
    return total / layout.shares


def check_tables(gates: Mapping[int, Gate], folder: Path) -> None:
    """Check the tables of hash gates that were loaded from a folder.

    Raises:
        ValueError: a table lists an expert that does not exist.
    """
    for layer, gate in gates.items():
        if isinstance(gate, HashGate) and not gate.is_valid():
            raise ValueError(f"{folder}: layers.{layer}.ffn.gate.tid2eid lists an expert that does not exist")
