"""Multi-token prediction (MTP): one more block that reads the next token's embedding and predicts the token after it.

Shapes: B rows, T tokens, S streams, D width.
"""

import torch
from torch import Tensor

from seektune.model.block import Block
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import RoutingLedger
from seektune.model.hyper import HyperHead
from seektune.model.linear import Linear
from seektune.model.norm import RMSNorm
from seektune.model.numerics import Numerics
from seektune.sequence import SequenceLayout


class MTPBlock(Block):
    """A block with its own input projections (`enorm`, `hnorm`, `e_proj`, `h_proj`) and output (`hc_head`, `norm`).

    Embedding and output head are the backbone's (official `MTPBlock`; alignment as in DeepSeek-V3).
    """

    def __init__(self, config: DeepseekV4Config, numerics: Numerics, device: torch.device | None, dtype: torch.dtype):
        super().__init__(config, config.num_hidden_layers, numerics, device, dtype)
        width = config.hidden_size
        self.e_proj = Linear(width, width, device, dtype)
        self.h_proj = Linear(width, width, device, dtype)
        self.enorm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        self.hnorm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        self.norm = RMSNorm(width, config.rms_norm_eps, device, dtype)
        self.hc_head = HyperHead(config, device)

    def forward(  # type: ignore[override]
        self,
        streams_BTSD: Tensor,
        next_embedding_BTD: Tensor,
        next_tokens_BT: Tensor,
        layout: SequenceLayout,
        ledger: RoutingLedger | None,
    ) -> Tensor:
        """Normalized hidden states `[B, T, D]`: position t reads the backbone's streams at t and the token at t + 1."""
        entry = self.e_proj(self.enorm(next_embedding_BTD)).unsqueeze(-2) + self.h_proj(self.hnorm(streams_BTSD))
        return self.norm(self.hc_head(super().forward(entry, next_tokens_BT, layout, ledger)))
