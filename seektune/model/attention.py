"""Attention of one layer: a sliding window and, depending on the layer's compression ratio, compressed entries.

Shapes: B rows, T tokens, D hidden width, R query rank, H heads, C head width, E entries, G output groups.
"""

import torch
from torch import Tensor, nn

from seektune.kernels import Prefix, Visible, norm_rope, sparse_attention
from seektune.model.compressor import Compressor
from seektune.model.config import CSA, SLIDING, DeepseekV4Config
from seektune.model.indexer import Indexer
from seektune.model.indexer_loss import IndexerLoss
from seektune.model.linear import GroupedLinear, Linear
from seektune.model.norm import RMSNorm
from seektune.model.numerics import Numerics
from seektune.model.rope import Rope, Rotation
from seektune.sequence import SequenceLayout, Windows


class Attention(nn.Module):
    """Low-rank queries over one shared key-value head, with sink and grouped low-rank output (paper section 2.3).

    Ratio 0 sees only the window; HCA (128) also all visible entries; CSA (4) also the entries its indexer chooses.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        ratio: int,
        numerics: Numerics,
        device: torch.device | None,
        dtype: torch.dtype,
    ):
        super().__init__()
        width = config.hidden_size
        heads = config.num_attention_heads
        head = config.head_dim
        self.ratio = ratio
        self.heads = heads
        self.width = head
        self.groups = config.o_groups
        self.eps = config.rms_norm_eps
        self.window = config.sliding_window
        self.rope_dim = config.qk_rope_head_dim
        self.numerics = numerics
        self.rope = Rope.of_layer(config, ratio)

        self.wq_a = Linear(width, config.q_lora_rank, device, dtype)
        self.q_norm = RMSNorm(config.q_lora_rank, self.eps, device, dtype)
        self.wq_b = Linear(config.q_lora_rank, heads * head, device, dtype)
        self.wkv = Linear(width, head, device, dtype)
        self.kv_norm = RMSNorm(head, self.eps, device, dtype)
        self.attn_sink = nn.Parameter(torch.empty(heads, device=device, dtype=torch.float32))
        self.wo_a = GroupedLinear(
            heads * head // self.groups, self.groups * config.o_lora_rank, self.groups, device, dtype
        )
        self.wo_b = Linear(self.groups * config.o_lora_rank, width, device, dtype)
        if ratio != SLIDING:
            self.compressor = Compressor(config, ratio, head, device, dtype)
        if ratio == CSA:
            self.indexer = Indexer(config, numerics, device, dtype)

    def forward(self, x_BTD: Tensor, layout: SequenceLayout, indexer_loss: IndexerLoss | None = None) -> Tensor:
        """`[B, T, D]`; keys are rotated by their own position, and the output is rotated back by the query's.

        With `indexer_loss`, the indexer of the layer is trained.
        """
        rotation = layout.at_positions(self.rope)
        q_residual = self.q_norm(self.wq_a(x_BTD))
        q_BTHC = self.wq_b(q_residual).view(*x_BTD.shape[:2], self.heads, self.width)
        q_BTHC = norm_rope(q_BTHC, rotation.cos, rotation.sin, self.eps)
        keys_BTC = rotation(self.kv_norm(self.wkv(x_BTD)))
        inputs = x_BTD, q_residual, q_BTHC, keys_BTC, rotation, layout
        if indexer_loss is None or self.ratio != CSA:
            o_BTHC = self.attend(*inputs)
        else:
            o_BTHC = self.attend_with_indexer_loss(*inputs, indexer_loss)
        return self.project(rotation.inverse.over_heads(o_BTHC))

    def attend(
        self,
        x_BTD: Tensor,
        q_residual_BTR: Tensor,
        q_BTHC: Tensor,
        keys_BTC: Tensor,
        rotation: Rotation,
        layout: SequenceLayout,
    ) -> Tensor:
        """Attention output of each head, `[B, T, H, C]`, from rotated queries and keys."""
        keys_BTC = self.numerics.keep(keys_BTC, self.rope_dim)
        entries_BEC, visible = self.compress(x_BTD, q_residual_BTR, rotation, layout, keys_BTC)
        keys_BNC = layout.preceded(keys_BTC, self.window - 1)
        return sparse_attention(q_BTHC, keys_BNC, entries_BEC, self.attn_sink, layout.positions, self.window, visible)

    def attend_with_indexer_loss(
        self,
        x_BTD: Tensor,
        q_residual_BTR: Tensor,
        q_BTHC: Tensor,
        keys_BTC: Tensor,
        rotation: Rotation,
        layout: SequenceLayout,
        indexer_loss: IndexerLoss,
    ) -> Tensor:
        """As `attend` in a layer whose indexer is trained: computes its loss. In a warm-up, queries see all entries."""
        keys_BTC = self.numerics.keep(keys_BTC, self.rope_dim)
        keys_BNC = layout.preceded(keys_BTC, self.window - 1)
        windows = layout.windows(self.ratio)
        entries_BEC = self.entries(x_BTD, windows)
        everything = Prefix(windows.first_BT, windows.count_BT)
        vectors = self.indexer.vectors(x_BTD, q_residual_BTR, rotation, windows)
        visible = everything if indexer_loss.training.warmup else self.indexer.choose(vectors, everything)
        seen = q_BTHC, keys_BNC, entries_BEC, self.attn_sink
        indexer_loss.compute(vectors, *seen, self.window, everything, visible, self.indexer.topk, layout)
        return sparse_attention(*seen, layout.positions, self.window, visible)

    def entries(self, x_BTD: Tensor, windows: Windows) -> Tensor:
        """The compressed entries of the row, `[B, E, C]`."""
        return windows.of_row(self.numerics.keep(self.compressor(x_BTD, windows), self.rope_dim))

    def compress(
        self, x_BTD: Tensor, q_residual_BTR: Tensor, rotation: Rotation, layout: SequenceLayout, keys_BTC: Tensor
    ) -> tuple[Tensor, Visible]:
        """Compressed entries `[B, E, C]` (E = 0 at ratio 0), and those visible to each query."""
        if self.ratio == SLIDING:
            nothing = torch.zeros_like(layout.positions)
            return keys_BTC[:, :0], Prefix(nothing, nothing)
        windows = layout.windows(self.ratio)
        entries = self.entries(x_BTD, windows)
        if self.ratio == CSA:
            return entries, self.indexer(x_BTD, q_residual_BTR, rotation, windows)
        return entries, Prefix(windows.first_BT, windows.count_BT)

    def project(self, o_BTHC: Tensor) -> Tensor:
        """Output projection: each group of adjacent heads through its own rows of `wo_a`, then all through `wo_b`."""
        o_BTGI = o_BTHC.reshape(*o_BTHC.shape[:2], self.groups, self.heads * self.width // self.groups)
        return self.wo_b(self.wo_a(o_BTGI).flatten(2))
