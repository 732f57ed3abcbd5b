"""A layer: attention and experts, each behind its norm, around hyper-connected streams."""

import torch
from torch import Tensor, nn

from seektune.model.attention import Attention
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import RoutingLedger
from seektune.model.hyper import HyperConnection
from seektune.model.indexer_loss import IndexerLoss
from seektune.model.moe import MoE
from seektune.model.norm import RMSNorm
from seektune.model.numerics import Numerics
from seektune.sequence import SequenceLayout


class Block(nn.Module):
    """Layer `layer` of the backbone, or the body of the MTP block (`layer == num_hidden_layers`)."""

    def __init__(
        self,
        config: DeepseekV4Config,
        layer: int,
        numerics: Numerics,
        device: torch.device | None,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.numerics = numerics
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.attn = Attention(config, config.ratio(layer), numerics, device, dtype)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.ffn = MoE(config, layer, device, dtype)
        self.hc_attn = HyperConnection(config, device)
        self.hc_ffn = HyperConnection(config, device)

    def forward(
        self, streams_BTSD: Tensor, tokens_BT: Tensor | None, layout: SequenceLayout, ledger: RoutingLedger | None
    ) -> Tensor:
        """Streams `[B, T, S, D]` to streams."""
        indexer_loss = None if ledger is None else ledger.new_indexer_loss(self.ffn.layer)
        if indexer_loss is None:
            return self._run(streams_BTSD, tokens_BT, layout, ledger, None)
        return indexer_loss.run_block(streams_BTSD, lambda x: self._run(x, tokens_BT, layout, ledger, indexer_loss))

    def _run(
        self,
        streams_BTSD: Tensor,
        tokens_BT: Tensor | None,
        layout: SequenceLayout,
        ledger: RoutingLedger | None,
        indexer_loss: IndexerLoss | None,
    ) -> Tensor:
        own = layout.at(self.ffn.layer)
        streams = self.hc_attn(streams_BTSD, lambda x: self.attn(self.attn_norm(x), own, indexer_loss))
        return self.hc_ffn(streams, lambda x: self.ffn(self.ffn_norm(x), tokens_BT, layout, ledger))
