"""The examples of a dataset's split that a run uses: prepared once, then chosen and cut as the recipe says."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.store.prepare import Progress, Runner, prepare
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.view import ExampleView, Numbers, ViewChoice, view
from seektune.data.store.workers import run_here


@dataclass(frozen=True)
class PreparedSplit:
    """A split of a dataset as a run reads it."""

    examples: PreparedExamples | ExampleView
    store: PreparedExamples
    """All examples of the split."""
    overlong: int = 0
    """Examples longer than a row."""
    chosen: int = 0
    """Examples before long ones were left out or taken apart."""

    @property
    def digest(self) -> str:
        """Digest of the tokens and labels, and of what was chosen of them."""
        key = self.examples.key if isinstance(self.examples, ExampleView) else ""
        return hashlib.sha256(f"{self.store.manifest.digest} {key}".encode()).hexdigest()


def prepare_split(
    dataset: DataConfig,
    split: Split,
    settings: EncodeSettings,
    cache: DataCache,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Runner = run_here,
) -> PreparedExamples:
    """All examples of a split, from the cache or made now.

    Raises:
        ValueError: a row is bad and may not be dropped.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    return prepare(
        dataset.source(split, cache),
        dataset.encoder(settings),
        cache.folder,
        f"{dataset.log_name}-{split}",
        strict=dataset.on_bad_row == "error",
        progress=progress,
        run=run,
    )


def examples_of(store: PreparedExamples, batch: BatchConfig, limit: int | None = None) -> PreparedSplit:
    """The examples of a store that a run uses, of at most `limit` rows, spread evenly.

    Raises:
        ValueError: one is longer than `batch.length` and may not be, or none is left.
    """
    limited = limit is not None and limit < store.manifest.rows
    choice = ViewChoice(batch.length, batch.overlong, f"{limit} rows" if limited else "")
    examples = view(store, choice, (lambda: spread_evenly(store, limit or 0)) if limited else None)
    if isinstance(examples, ExampleView):
        return PreparedSplit(examples, store, examples.left.overlong, examples.left.chosen)
    return PreparedSplit(examples, store, 0, len(store))


def spread_evenly(store: PreparedExamples, limit: int) -> Numbers:
    """The examples of at most `limit` rows, evenly spaced: a split may be sorted by source."""
    rows = np.unique(store.rows)
    count = min(limit, len(rows))
    chosen = rows[np.arange(count) * len(rows) // count]
    return np.flatnonzero(np.isin(store.rows, chosen))
