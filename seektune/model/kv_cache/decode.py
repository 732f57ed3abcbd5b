"""The model on one device with forward passes that continue from a KV cache.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seektune.model.block import Block
from seektune.model.dspark import DraftBlock, DraftLayout, DSparkStage, LayerMeans, draft_ids, run_stages
from seektune.model.kv_cache.cache import ROLLBACK, KVCache
from seektune.model.kv_cache.size import CacheSize
from seektune.model.transformer import TokenRows, TransformerPart


class CachedTransformer(TransformerPart):
    """Consecutive layers, with forward passes on tokens that follow those in a cache."""

    @property
    def device(self) -> torch.device:
        """The device for token ids."""
        return next(self.parameters()).device

    def new_cache(self, batch_size: int, max_length: int, rollback: int = ROLLBACK, grows: bool = False) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens, of which `rollback` can be rolled back.

        One that `grows` takes the memory of its longest row, in powers of two, and not `max_length`'s from the start.

        Raises:
            ValueError: a size is not positive.
        """
        return self._cache_of([block.ffn.layer for block in self.layers], batch_size, max_length, rollback, grows)

    def new_draft_cache(self, batch_size: int, max_length: int, grows: bool = False) -> KVCache:
        """An empty cache for the MTP block (`foresee`) or the DSpark stages (`remember`)."""
        first = self.config.num_hidden_layers
        return self._cache_of(range(first, first + len(self.mtp)), batch_size, max_length, ROLLBACK, grows)

    def cache_size(self, max_length: int, drafts: bool = False) -> CacheSize:
        """What a row of `new_cache` takes, with `drafts` also one of `new_draft_cache`."""
        layers = [block.ffn.layer for block in (self.blocks() if drafts else self.layers)]
        return CacheSize.of(self.config, layers, max_length, self.dtype)

    @torch.no_grad()
    def advance(
        self,
        tokens_BT: Tensor,
        cache: KVCache,
        counts: Sequence[int] | None = None,
        means: LayerMeans | None = None,
    ) -> Tensor:
        """Streams `[B, T, S, D]` of tokens that follow those in a cache; they are added to it.

        Args:
            tokens_BT: ids, int64.
            cache: of as many rows.
            counts: how many of each row's tokens are text, the others being padding; None = all.
            means: receives the means over the streams after some layers, for `remember`.

        Raises:
            ValueError: the cache has other rows, or no room.
        """
        if tokens_BT.shape[0] != cache.rows:
            raise ValueError(f"the cache has {cache.rows} rows, input_ids {tokens_BT.shape[0]}")
        step = cache.step(tokens_BT.shape[1], counts)
        rows = TokenRows(tokens_BT, step.layout(tokens_BT.device))
        streams = self.backbone(rows, means=means).streams_BTSD
        cache.advance(step)
        return streams

    @torch.no_grad()
    def advance_empty(self) -> None:
        """Take part in `advance` of the processes that share the experts, without tokens; no effect if none does."""
        nothing_ND = torch.empty(0, self.config.hidden_size, dtype=self.dtype, device=self.device)
        for block in self.layers:
            block.ffn.join(nothing_ND)

    @torch.no_grad()
    def draft_empty(self) -> None:
        """Take part in `foresee` or `draft`, as `advance_empty` does in `advance`."""
        nothing_ND = torch.empty(0, self.config.hidden_size, dtype=self.dtype, device=self.device)
        for block in self.mtp:
            assert isinstance(block, Block)
            block.ffn.join(nothing_ND)

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

    @torch.no_grad()
    def remember(self, means_BTM: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> None:
        """Add the keys of further tokens to the memory of the DSpark stages.

        Args:
            means_BTM: `LayerMeans.joined` of the next tokens that the stages have not read.
            cache: of `new_draft_cache`.
            counts: as of `advance`.
        """
        stages = self._stages()
        step = cache.step(means_BTM.shape[1], counts)
        layout = step.layout(means_BTM.device)
        memory_BTD = stages[0].memory(means_BTM)
        for stage in stages:
            keys = stage.attn.memory_keys(memory_BTD, layout.at_positions(stage.attn.rope))
            layout.at(stage.ffn.layer).preceded(keys, 0)
        cache.advance(step)

    @torch.no_grad()
    def draft(self, anchors_B: Tensor, cache: KVCache) -> DraftBlock:
        """The block of a draft by the DSpark stages, from each row's last token, which the memory does not hold yet."""
        stages = self._stages()
        first = self.config.num_hidden_layers
        window = self.config.sliding_window
        lengths_B1 = torch.tensor(cache.lengths, device=anchors_B.device)[:, None]
        ids_BA = draft_ids(self.config, anchors_B)
        positions_BA = lengths_B1 + torch.arange(ids_BA.shape[1], device=ids_BA.device)
        tails = [cache.layers[stage.ffn.layer].keys for stage in stages]
        memories = [tail.values[:, cache.used + tail.keep - window : cache.used + tail.keep] for tail in tails]
        known_BN = torch.arange(window, device=ids_BA.device) >= window - lengths_B1
        layout = DraftLayout(positions_BA, torch.ones_like(positions_BA), memories, known_BN, first)
        hidden_BAD, normed_BAD = run_stages(stages, self.embed, ids_BA, layout)
        return DraftBlock(self.logits(normed_BAD), hidden_BAD, stages[-1])

    def _stages(self) -> list[DSparkStage]:
        return [stage for stage in self.mtp if isinstance(stage, DSparkStage)]

    def _cache_of(self, layers: Sequence[int], batch_size: int, max_length: int, rollback: int, grows: bool) -> KVCache:
        return KVCache.of(self.config, layers, batch_size, max_length, self.dtype, self.device, rollback, grows)
