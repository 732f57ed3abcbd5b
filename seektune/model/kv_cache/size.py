"""The memory of a sequence's KV cache, from the buffers that would be allocated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import ROLLBACK
from seektune.model.kv_cache.layer import LayerCache, empty_layer


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the cache of one sequence in some layers."""

    fixed: int
    """Of windows and incomplete compression windows: the same for any length."""
    per_token: float
    """Of compressed entries: an entry stands for 4 or 128 tokens."""

    @classmethod
    def of(cls, config: DeepseekV4Config, layers: Sequence[int], max_length: int, dtype: torch.dtype) -> "CacheSize":
        """From the layers and the maximum length of a sequence."""
        meta = torch.device("meta")
        made = [empty_layer(config, layer, 1, max_length, ROLLBACK, 0, dtype, meta) for layer in layers]
        return cls(_fixed(made), _per_token(made))

    def bytes(self, tokens: int) -> int:
        """Of a cache with a capacity of that many tokens; exact if 128 divides them, otherwise up to an entry more."""
        return self.fixed + round(tokens * self.per_token)


def _fixed(layers: Sequence[LayerCache]) -> int:
    tails = sum(tail.values.nbytes for layer in layers for tail in layer.tails())
    return tails + sum(each.entries.nbytes for layer in layers for each in layer.compressors())


def _per_token(layers: Sequence[LayerCache]) -> float:
    found = [each for layer in layers for each in layer.compressors()]
    return sum(each.entries.shape[2] * each.entries.element_size() / each.ratio for each in found)
