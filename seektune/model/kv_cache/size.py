"""The memory of a sequence's KV cache, from the buffers that would be allocated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import ROLLBACK
from seektune.model.kv_cache.layer import empty_layer


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the cache of one sequence in some layers."""

    fixed: int
    """Of windows and incomplete compression windows: the same for any length."""
    entries: Mapping[int, int]
    """Of an entry of all layers that have one for so many tokens."""

    @classmethod
    def of(cls, config: DeepseekV4Config, layers: Sequence[int], max_length: int, dtype: torch.dtype) -> "CacheSize":
        """From the layers and the maximum length of a sequence."""
        meta = torch.device("meta")
        made = [empty_layer(config, layer, 1, max_length, ROLLBACK, 0, dtype, meta) for layer in layers]
        entries: Counter[int] = Counter()
        for each in (each for layer in made for each in layer.compressors()):
            entries[each.ratio] += each.entries.nbytes
        tails = sum(tail.values.nbytes for layer in made for tail in layer.tails())
        return cls(tails + entries.total(), entries)

    @property
    def per_token(self) -> float:
        """Of a token of a long sequence."""
        return sum(size / ratio for ratio, size in self.entries.items())

    def bytes(self, tokens: int) -> int:
        """Of a cache with a capacity of that many tokens."""
        return self.fixed + sum(tokens // ratio * size for ratio, size in self.entries.items())
