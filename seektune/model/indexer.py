"""The lightning indexer: chooses the compressed entries that each query of a CSA layer attends to.

Shapes: B rows, T tokens, E entries, D hidden width, R query rank, H index heads, I index width.
"""

import torch
from torch import Tensor, nn

from seektune.kernels import Chosen, Prefix, index_topk
from seektune.model.compressor import Compressor
from seektune.model.config import CSA, DeepseekV4Config
from seektune.model.indexer_loss import IndexVectors
from seektune.model.linear import Linear
from seektune.model.numerics import Numerics
from seektune.model.rope import Rotation
from seektune.sequence import Windows

INDEXERS = ".attn.indexer."
"""Part of the names of the weights of indexers."""


class Indexer(nn.Module):
    """Top `index_topk` entries by `sum_h w_h relu(q_h · k)` (paper section 2.3; official `Indexer`).

    The top-k has no gradient, so the indexer's parameters do not require one unless `train.indexer` trains them.
    """

    def __init__(self, config: DeepseekV4Config, numerics: Numerics, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        self.heads = config.index_n_heads
        self.width = config.index_head_dim
        self.topk = config.index_topk
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width, device, dtype)
        self.weights_proj = Linear(config.hidden_size, self.heads, device, dtype)
        self.compressor = Compressor(config, CSA, self.width, device, dtype)
        self.numerics = numerics
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x_BTD: Tensor, q_residual_BTR: Tensor, rotation: Rotation, windows: Windows) -> Prefix | Chosen:
        """The entries of each query: all visible ones if there cannot be more than `index_topk`."""
        everything = Prefix(windows.first_BT, windows.count_BT)
        if windows.most <= self.topk:
            return everything
        keys_BEI = self._keys(x_BTD, windows)
        if keys_BEI.shape[1] <= self.topk:
            return everything
        return index_topk(*self._queries(x_BTD, q_residual_BTR, rotation, keys_BEI), everything, self.topk)

    def vectors(self, x_BTD: Tensor, q_residual_BTR: Tensor, rotation: Rotation, windows: Windows) -> IndexVectors:
        """Queries, keys and head weights of the scores; no gradient reaches the input."""
        x_BTD = x_BTD.detach()
        keys_BEI = self._keys(x_BTD, windows)
        return IndexVectors(*self._queries(x_BTD, q_residual_BTR.detach(), rotation, keys_BEI))

    @torch.no_grad()
    def choose(self, vectors: IndexVectors, everything: Prefix) -> Prefix | Chosen:
        """As `forward`, from the result of `vectors`."""
        if vectors.keys_BEI.shape[1] <= self.topk:
            return everything
        return index_topk(vectors.q_BTHI, vectors.keys_BEI, vectors.weights_BTH, everything, self.topk)

    def _keys(self, x_BTD: Tensor, windows: Windows) -> Tensor:
        """Keys of the entries of the row, `[B, E, I]`."""
        mine = windows.for_indexer()
        return mine.of_row(self.numerics.index(self.compressor(x_BTD, mine)))

    def _queries(
        self, x_BTD: Tensor, q_residual_BTR: Tensor, rotation: Rotation, keys_BEI: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, T, H, I]`, the keys, and the weights of heads `[B, T, H]`."""
        q_BTHI = self.wq_b(q_residual_BTR).unflatten(-1, (self.heads, self.width))
        q_BTHI = self.numerics.index(rotation.over_heads(q_BTHI))
        weights_BTH = self.weights_proj(x_BTD) * (self.width**-0.5 * self.heads**-0.5)
        return q_BTHI, keys_BEI, weights_BTH
