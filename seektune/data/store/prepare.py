"""Prepares the examples of a source, once: shards, their index and a manifest in a folder of the cache."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from seektune.data.datasets.dataset import RowEncoder
from seektune.data.sources.source import RowSource
from seektune.data.store.index import write_index
from seektune.data.store.lock import disk_explained, locked
from seektune.data.store.manifest import Manifest, key_of, read_manifest
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.shard import ShardJob, ShardRecord
from seektune.data.store.workers import run_here

PREPARED = "prepared"
"""Folder of the cache."""
LEAST_ROWS = 1024
MOST_SHARDS = 256
"""Smallest number of rows of a shard, and largest number of shards of a source."""

Done = Callable[[ShardRecord], None]
"""Called with the record of each shard, in order, as it is completed or found."""
Runner = Callable[[Sequence[ShardJob], Done], list[ShardRecord]]
"""Runs jobs, here, in other processes or on other machines; the records come in order."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    shards: int
    """Done so far."""
    of: int
    tokens: int
    """Tokens of the shards that are done."""
    tokens_per_s: float
    """Speed since the preparation began or continued."""


def prepare(
    source: RowSource,
    encoder: RowEncoder,
    cache: Path,
    name: str,
    strict: bool = True,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Runner = run_here,
) -> PreparedExamples:
    """The prepared examples of a source: those of the cache, or made now.

    A preparation that was interrupted continues at the first shard that is missing. If another process prepares the
    same, this one waits for it.

    Args:
        source: of the rows; all are encoded.
        encoder: of the rows.
        cache: SeekTune's cache folder.
        name: begins the folder's name.
        strict: whether a row that cannot be read or encoded is an error.
        progress: called after each shard.
        run: what encodes the shards that are missing.

    Raises:
        ValueError: a row is bad and `strict`, or the source gives no examples.
        OSError: the cache cannot be written; complete shards are kept.
    """
    key = key_of(source.identity, encoder.identity)
    folder = cache / PREPARED / f"{_as_file_name(name)}-{key[:16]}"
    manifest = read_manifest(folder, key)
    if manifest is None:
        with disk_explained(folder), locked(folder):
            manifest = read_manifest(folder, key) or _make(source, encoder, folder, key, strict, progress, run)
    if strict and manifest.bad_rows:
        raise ValueError(": ".join(manifest.listed[0]))
    if not manifest.examples:
        raise ValueError(f"{source.title}: no row gives an example; the first is bad: {': '.join(manifest.listed[0])}")
    return PreparedExamples(folder, manifest)


def shard_jobs(source: RowSource, encoder: RowEncoder, folder: Path, strict: bool) -> list[ShardJob]:
    """The jobs that make all shards of a source."""
    count = source.count()
    size = max(LEAST_ROWS, -(-count // MOST_SHARDS))
    starts = range(0, count, size)
    return [
        ShardJob(source, encoder, folder, number, start, min(start + size, count), strict)
        for number, start in enumerate(starts)
    ]


def _make(
    source: RowSource,
    encoder: RowEncoder,
    folder: Path,
    key: str,
    strict: bool,
    progress: Callable[[Progress], None],
    run: Runner,
) -> Manifest:
    """Encode the missing shards, and write index and manifest."""
    jobs = shard_jobs(source, encoder, folder, strict)
    clock = _Clock(len(jobs), progress)
    records = run(jobs, clock.tell)
    longest = write_index(folder, [record.examples for record in records])
    manifest = Manifest.of(key, source.title, source.count(), longest, records)
    manifest.write(folder)
    return manifest


class _Clock:
    """Tells how far and how fast a preparation is."""

    def __init__(self, shards: int, progress: Callable[[Progress], None]):
        self._shards = shards
        self._progress = progress
        self._began = perf_counter()
        self._done = 0
        self._tokens = 0

    def tell(self, record: ShardRecord) -> None:
        """A shard is done."""
        self._done += 1
        self._tokens += record.tokens
        speed = self._tokens / (perf_counter() - self._began)
        self._progress(Progress(self._done, self._shards, self._tokens, speed))


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:60]
