"""The examples of a dataset's splits that a run uses: prepared once, then chosen and cut as the recipe says."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from seektune.data.answers import PairExamples
from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.examples import Examples
from seektune.data.store.prepare import Progress, Runner, prepare
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.select import Digests, Mask, Selection, choose, held_out
from seektune.data.store.view import ExampleView, ViewChoice, ViewReport, view
from seektune.data.store.workers import run_here

SPLITS: tuple[Split, ...] = ("train", "validation")
Stores = Mapping[Split, PreparedExamples]
"""All examples of each split; one store for both where held-out rows are of the same source."""


@dataclass(frozen=True)
class PreparedSplit:
    """A split of a dataset as a run reads it."""

    examples: Examples
    store: PreparedExamples
    """All examples of the split."""
    report: ViewReport
    key: str
    """Names what was chosen and cut of the store; empty for all of it."""

    @property
    def digest(self) -> str:
        """Digest of the tokens and labels, and of what was chosen of them."""
        return hashlib.sha256(f"{self.store.manifest.digest} {self.key}".encode()).hexdigest()


def prepare_dataset(
    dataset: DataConfig,
    settings: EncodeSettings,
    cache: DataCache,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Runner = run_here,
) -> Stores:
    """All examples of both splits, from the cache or made now.

    Raises:
        ValueError: a row is bad and may not be dropped.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    return {split: prepare_split(dataset, split, settings, cache, progress, run) for split in SPLITS}


def prepare_split(
    dataset: DataConfig,
    split: Split,
    settings: EncodeSettings,
    cache: DataCache,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Runner = run_here,
) -> PreparedExamples:
    """All examples of a split; errors as of `prepare_dataset`."""
    one_source = dataset.held_out_share is not None
    return prepare(
        dataset.source(split, cache),
        dataset.encoder_of(split, settings),
        cache.folder,
        dataset.log_name if one_source else f"{dataset.log_name}-{split}",
        strict=dataset.on_bad_row == "error",
        progress=progress,
        run=run,
    )


def stores_to_inspect(
    dataset: DataConfig,
    settings: EncodeSettings,
    cache: DataCache,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Stores:
    """As `prepare_dataset`, but bad rows are never an error, and nor is a missing validation split, which is left out.

    Raises:
        ValueError: no training row gives an example, or a file is damaged.
        OSError: as `prepare_dataset`.
    """
    lenient = dataset.model_copy(update={"on_bad_row": "drop"})
    train = prepare_split(lenient, "train", settings, cache, progress)
    try:
        return {"train": train, "validation": prepare_split(lenient, "validation", settings, cache, progress)}
    except ValueError:
        return {"train": train}


def examples_of(
    dataset: DataConfig, split: Split, stores: Stores, batch: BatchConfig, limit: int | None = None
) -> PreparedSplit:
    """The examples of a split that a run uses, of at most `limit` rows.

    Raises:
        ValueError: one is longer than `batch.length` and may not be, or none is left.
        OSError: the cache cannot be written.
    """
    store = stores[split]
    share = dataset.held_out_share
    other = stores["validation"] if split == "train" and share is None else None
    by = [split if share is not None else "", share, dataset.duplicates, limit, other and other.manifest.digest]
    choice = ViewChoice(batch.length, batch.overlong, repr(by), dataset.paired)
    examples, report = view(store, choice, lambda: _selected(dataset, split, store, other, limit))
    key = examples.key if isinstance(examples, ExampleView) else ""
    return PreparedSplit(PairExamples(examples) if dataset.paired else examples, store, report, key)


def _selected(
    dataset: DataConfig, split: Split, store: PreparedExamples, other: PreparedExamples | None, limit: int | None
) -> Selection:
    found = select(dataset, split, store, other, limit)
    if not len(found.ids) and dataset.held_out_share is not None:
        raise ValueError(
            f"{store.manifest.title}: data.validation {dataset.held_out_share:g} leaves no {split} rows of "
            f"{store.manifest.rows:,}; set another share, or name a file of held-out rows"
        )
    return found


def chosen(dataset: DataConfig, split: Split, stores: Stores) -> Selection:
    """The examples of a split, without a limit of rows for validation, whatever their length."""
    other = None if split == "validation" or dataset.held_out_share is not None else stores.get("validation")
    return select(dataset, split, stores[split], other, dataset.limit if split == "train" else None)


def select(
    dataset: DataConfig, split: Split, store: PreparedExamples, other: PreparedExamples | None, limit: int | None
) -> Selection:
    """Choose examples of a split by the keys of the dataset; `other` are the held-out ones of another source."""
    among: Mask = np.ones(len(store), bool)
    if dataset.held_out_share is not None:
        among = held_out(store.digests, dataset.held_out_share) == (split == "validation")
    held: Digests = store.digests[:0] if other is None else other.digests
    return choose(store.digests, store.rows, among, held, dataset.duplicates == "drop", limit)
