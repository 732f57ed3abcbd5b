"""The memory that a rank has for KV caches, and what the sequences placed on it take."""

import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch

from seektune.generate.cache_limit import CacheLimit
from seektune.io.console import size
from seektune.model.kv_cache.cache import grown_room
from seektune.model.kv_cache.size import CacheSize


@dataclass
class BatchRows:
    """Sequences that are decoded together: each takes the cache of the longest."""

    count: int = 0
    longest: int = 0
    """Maximum tokens, prompt included."""

    def joined_by(self, length: int) -> "BatchRows":
        """With one more sequence."""
        return BatchRows(self.count + 1, max(self.longest, length))


def padded_rows(rows: int) -> int:
    """The rows of a static step for a number of sequences: the next power of two."""
    return 1 << (rows - 1).bit_length()


@dataclass(frozen=True)
class CacheRoom:
    """The memory of a rank for caches."""

    size: CacheSize
    """Of a sequence on this rank."""
    free: int
    """Bytes for caches."""
    longest: int
    """Maximum tokens of a sequence."""
    ahead: int
    """Tokens that a draft adds to it."""
    grows: bool
    """Whether caches grow with their sequences."""
    prefixes: int = 0
    """Bytes for a prefix cache, beside `free`."""
    static_steps: bool = False
    """Whether decode steps run on buffers of their own."""

    def left(self, batches: Iterable[BatchRows]) -> int:
        """Bytes that are left when all sequences have their full length; negative if they do not fit.

        While rows join or leave a batch its cache is copied, so the largest is there twice; static steps have a copy of
        all rows.
        """
        running = [batch for batch in batches if batch.count]
        held = [batch.count * self.size.bytes(self._room(batch.longest)) for batch in running]
        return self.free - sum(held) - max(held, default=0) - sum(map(self.static_bytes, running))

    def static_bytes(self, batch: BatchRows) -> int:
        """Upper bound of the bytes that static steps of a batch take beside its cache."""
        return padded_rows(batch.count) * self.size.bytes(self._room(batch.longest)) if self.static_steps else 0

    def tokens(self) -> int:
        """Tokens of the longest sequence that fits."""
        lengths = range(1, self.longest + 1)
        return bisect_left(lengths, True, key=lambda length: self.left([BatchRows(1, length)]) < 0)

    def __str__(self) -> str:
        prefixes = f", the prefix cache {size(self.prefixes)}" if self.prefixes else ""
        return (
            f"{self.tokens():,} tokens of context fit beside the weights of each rank in one sequence; caches and "
            f"{self.copies} have {size(self.free)} ({size(round(self.size.per_token))} for each token, "
            f"{size(self.size.fixed)} for each sequence){prefixes}"
        )

    @property
    def copies(self) -> str:
        """What is there beside the caches of running sequences, in words."""
        return "the copies for static steps and of a batch" if self.static_steps else "the copy of a batch"

    def _room(self, length: int) -> int:
        whole = self.longest + self.ahead + 1
        return grown_room(length + self.ahead, whole) if self.grows else whole


UNLIMITED = CacheRoom(CacheSize(0, {1: 1}), 2**62, 2**62, 0, grows=True)
"""Of an engine without a limit."""


def prefix_share(wanted: int, free: int) -> int:
    """Bytes of a prefix cache: what is wanted, at most a quarter of what caches may take."""
    return min(wanted, free // 4)


def free_bytes(limit: CacheLimit, device: torch.device) -> int:
    """What caches may take now, on this process's device; without a GPU its share of the host's free memory."""
    share = limit.gpu_memory_utilization
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(round(free + unused - (1 - share) * total), 0) // limit.engines
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return round(share * psutil.virtual_memory().available) // processes // limit.engines
