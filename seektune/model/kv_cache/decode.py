"""The model on one device with forward passes that continue from a KV cache.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seektune.model.kv_cache.cache import ROLLBACK, KVCache
from seektune.model.transformer import TokenRows, TransformerPart


class CachedTransformer(TransformerPart):
    """All layers, with forward passes on tokens that follow those in a cache."""

    @property
    def device(self) -> torch.device:
        """The device for token ids."""
        return self.embed.weight.device

    def new_cache(self, batch_size: int, max_length: int, rollback: int = ROLLBACK, grows: bool = False) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens, of which `rollback` can be rolled back.

        One that `grows` takes the memory of its longest row, in powers of two, and not `max_length`'s from the start.

        Raises:
            ValueError: a size is not positive.
        """
        return self._cache_of(range(len(self.layers)), batch_size, max_length, rollback, grows)

    def new_draft_cache(self, batch_size: int, max_length: int, grows: bool = False) -> KVCache:
        """An empty cache for the MTP block (`foresee`)."""
        layer = self.config.num_hidden_layers
        return self._cache_of(range(layer, layer + 1), batch_size, max_length, ROLLBACK, grows)

    @torch.no_grad()
    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Streams `[B, T, S, D]` of tokens that follow those in a cache; they are added to it.

        Args:
            tokens_BT: ids, int64.
            cache: of as many rows.
            counts: how many of each row's tokens are text, the others being padding; None = all.

        Raises:
            ValueError: the cache has other rows, or no room.
        """
        if tokens_BT.shape[0] != cache.rows:
            raise ValueError(f"the cache has {cache.rows} rows, input_ids {tokens_BT.shape[0]}")
        step = cache.step(tokens_BT.shape[1], counts)
        streams = self.backbone(TokenRows(tokens_BT, step.layout(tokens_BT.device))).streams_BTSD
        cache.advance(step)
        return streams

    @torch.no_grad()
    def foresee(
        self, streams_BTSD: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None
    ) -> Tensor:
        """Hidden states of the MTP block for the head, `[B, T, D]`; tokens follow those in the MTP block's cache.

        Args:
            streams_BTSD: what `advance` gave for the next tokens that the MTP block has not read.
            next_BT: the token after each of them.
            cache: of `new_draft_cache`; they are added to it.
            counts: as of `advance`.
        """
        step = cache.step(next_BT.shape[1], counts)
        hidden = self.look_ahead(streams_BTSD, self.embed(next_BT), next_BT, step.layout(next_BT.device))
        cache.advance(step)
        return hidden

    def _cache_of(self, layers: range, batch_size: int, max_length: int, rollback: int, grows: bool) -> KVCache:
        weight = self.embed.weight
        return KVCache.of(self.config, layers, batch_size, max_length, weight.dtype, weight.device, rollback, grows)
