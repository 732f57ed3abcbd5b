"""The interface of models that the decode engine can run.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from seektune.model.config import DeepseekV4Config
from seektune.model.dspark import DraftBlock, LayerMeans
from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.size import CacheSize


class DecodableModel(Protocol):
    """A model with forward passes that continue from a KV cache; `DeepseekV4ForCausalLM` is one."""

    config: DeepseekV4Config
    dtype: torch.dtype
    """Of the weights."""
    mtp: nn.ModuleList
    """The MTP block or the DSpark stages that it was loaded with."""

    @property
    def device(self) -> torch.device:
        """The device of token ids."""
        ...

    def new_cache(self, batch_size: int, max_length: int, *, grows: bool = False) -> KVCache:
        """An empty cache for the backbone."""
        ...

    def new_draft_cache(self, batch_size: int, max_length: int, *, grows: bool = False) -> KVCache:
        """An empty cache for the MTP block or the DSpark stages."""
        ...

    def cache_size(self, max_length: int, drafts: bool = False) -> CacheSize:
        """What a row of `new_cache` takes, with `drafts` also one of `new_draft_cache`."""
        ...

    def advance(
        self,
        tokens_BT: Tensor,
        cache: KVCache,
        counts: Sequence[int] | None = None,
        means: LayerMeans | None = None,
    ) -> Tensor:
        """Run the backbone on tokens that follow those in a cache, and add them to it; streams `[B, T, S, D]`."""
        ...

    def advance_empty(self) -> None:
        """Take part in `advance` of the ranks that share the experts, without tokens; no effect if none does."""
        ...

    def foresee(
        self, streams_BTSD: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None
    ) -> Tensor:
        """Run the MTP block and add the tokens to its cache; the head's input `[B, T, D]`."""
        ...

    def remember(self, means_BTM: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> None:
        """Add tokens to the memory of the DSpark stages."""
        ...

    def draft(self, anchors_B: Tensor, cache: KVCache) -> DraftBlock:
        """The block of a draft by the DSpark stages."""
        ...

    def draft_empty(self) -> None:
        """Take part in `foresee` or `draft` of the ranks that share the experts, without tokens."""
        ...

    def hidden(self, streams_BTSD: Tensor) -> Tensor:
        """The head's input from the backbone's streams, `[B, T, D]`."""
        ...

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits, fp32 `[B, T, V]`."""
        ...
