"""A memory-mapped checkpoint folder: pages are read on first use, can be prefetched, and can be released."""

import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.files import TensorFiles
from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.names import scale_name
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored

Region = tuple[mmap.mmap, int, int]
"""A mapped file, offset and length in bytes; whole pages."""


class MmapFolder:
    """Tensors of a folder as views of its mapped files; nothing is read before it is used."""

    def __init__(self, folder: Path):
        self.source = FolderSource(folder)
        self._files: TensorFiles = self.source.files
        self._maps: dict[Path, tuple[mmap.mmap, Tensor]] = {}

    def stored(self, name: str) -> Stored:
        """Like `FolderSource.stored`, without a copy if the tensor is aligned in its file."""
        kind = self.source.kind(name)
        names = [name, scale_name(name)] if kind in QUANTIZED else [name]
        return Stored(kind, *(self._view(each) for each in names))

    def regions(self, names: Iterable[str]) -> list[Region]:
        """The pages that hold these tensors and their scales; adjacent ones are joined."""
        spans: dict[Path, list[tuple[int, int]]] = {}
        for name in names:
            for each in [name, scale_name(name)] if self.source.kind(name) in QUANTIZED else [name]:
                file, start, size = self._files.location(each)
                spans.setdefault(file, []).append((start, start + size))
        return [(self._map(file)[0], *joined) for file, each in spans.items() for joined in _pages(each)]

    def _view(self, name: str) -> Tensor:
        file, start, size = self._files.location(name)
        dtype = self._files.torch_dtype(name)
        shape = self._files.shape(name)
        if start % dtype.itemsize:
            return self._files.read(name)
        return self._map(file)[1][start : start + size].view(dtype).reshape(shape)

    def _map(self, file: Path) -> tuple[mmap.mmap, Tensor]:
        if file not in self._maps:
            with file.open("rb") as opened:
                # a private mapping: torch needs writable memory, and a write would not reach the file
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps[file] = mapped, torch.frombuffer(mapped, dtype=torch.uint8)
        return self._maps[file]


class PagePrefetcher:
    """Has pages read by a thread before they are used, and releases them afterwards."""

    def __init__(self, ahead: bool = True):
        self._thread = ThreadPoolExecutor(1, "page-prefetch") if ahead else None

    def prefetch(self, regions: Iterable[Region]) -> None:
        """Start reading pages and return at once."""
        if self._thread is not None:
            self._thread.submit(_advise, list(regions), mmap.MADV_WILLNEED)

    def release(self, regions: Iterable[Region]) -> None:
        """Drop pages from this process's memory; they may stay in the page cache."""
        _advise(regions, mmap.MADV_DONTNEED)


def _advise(regions: Iterable[Region], advice: int) -> None:
    for mapped, start, size in regions:
        mapped.madvise(advice, start, size)


def _pages(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and size of the runs of pages that cover these (begin, end) byte ranges."""
    runs: list[list[int]] = []
    for begin, end in sorted(spans):
        begin -= begin % mmap.PAGESIZE
        if runs and begin <= runs[-1][1] + mmap.PAGESIZE:
            runs[-1][1] = max(runs[-1][1], end)
        else:
            runs.append([begin, end])
    return [(begin, end - begin) for begin, end in runs]
