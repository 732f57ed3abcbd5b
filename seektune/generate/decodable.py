"""What decoding needs of a model.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import KVCache


class DecodableModel(Protocol):
    """A model with forward passes that continue from a KV cache; `DeepseekV4ForCausalLM` is one."""

    config: DeepseekV4Config
    dtype: torch.dtype
    """Of the weights."""

    @property
    def device(self) -> torch.device:
        """Where token ids are expected."""
        ...

    def new_cache(self, batch_size: int, max_length: int, *, grows: bool = False) -> KVCache:
        """An empty cache for the backbone."""
        ...

    def new_draft_cache(self, batch_size: int, max_length: int, *, grows: bool = False) -> KVCache:
        """An empty cache for the MTP block."""
        ...

    def advance(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Streams `[B, T, S, D]` of tokens that follow those in a cache; they are added to it."""
        ...

    def foresee(
        self, streams_BTSD: Tensor, next_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None
    ) -> Tensor:
        """What the head reads of the MTP block, `[B, T, D]`; the tokens are added to its cache."""
        ...

    def hidden(self, streams_BTSD: Tensor) -> Tensor:
        """What the head reads of the backbone, `[B, T, D]`."""
        ...

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """fp32 `[B, T, V]`."""
        ...
