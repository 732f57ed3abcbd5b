"""Measures a dataset: the examples that training reads, from the prepared ones."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from seektune.data.answers import joined
from seektune.data.conversations.forms import read_conversation
from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataConfig
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.data.stats.dataset_stats import DatasetStats
from seektune.data.stats.tokens import TokenCounter
from seektune.data.stats.tools import ToolCounts
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.select import Numbers, held_out
from seektune.data.store.split import Stores, chosen
from seektune.data.tokenizer import Tokenizer


def measure(
    dataset: DataConfig, stores: Stores, tokenizer: Tokenizer, progress: Callable[[int, int], None]
) -> DatasetStats:
    """The statistics of the training examples, of all lengths; `progress` is called with rows done and in all.

    A pair of answers is one example, as `batch.length` bounds both together.
    """
    store = stores["train"]
    selection = chosen(dataset, "train", stores)
    bad = [BadRow(place, reason) for place, reason in store.manifest.listed]
    stats = DatasetStats(
        rows=selection.rows + store.manifest.bad_rows,
        bad_rows=store.manifest.bad_rows,
        bad=bad,
        repeated_rows=selection.duplicates,
    )
    counter = TokenCounter(tokenizer)
    for done, examples in enumerate(_by_row(store, selection.ids), start=1):
        stats.add([joined(examples, ("chosen", "rejected"))] if dataset.paired else examples)
        counter.add(examples, stats)
        progress(done, selection.rows)
    begins = np.diff(store.rows[selection.ids], prepend=-1) != 0
    stats.digests = store.digests[selection.ids[begins]]
    return stats


def count_tools(dataset: DataConfig, source: RowSource, stores: Stores) -> ToolCounts:
    """The tools of the training rows, which are read again; none of a dataset without conversations."""
    found = ToolCounts()
    if not isinstance(dataset, ChatConfig):
        return found
    rows = set(stores["train"].rows[chosen(dataset, "train", stores).ids].tolist())
    for number, row in enumerate(source.read(0, source.count())):
        if number in rows and isinstance(row, SourceRow):
            found.add(read_conversation(row.values, dataset.columns))
    return found


def is_held_out(dataset: DataConfig, row: SourceRow) -> bool:
    """Whether a row of the training source is held out for validation."""
    share = dataset.held_out_share
    return share is not None and bool(held_out(np.array([row.digest], np.uint64), share)[0])


def _by_row(store: PreparedExamples, ids: Numbers) -> Iterator[Sequence[Example]]:
    """The chosen examples of each row."""
    ends = np.flatnonzero(np.diff(store.rows[ids])) + 1
    for start, stop in zip([0, *ends], [*ends, len(ids)], strict=True):
        yield [store.example(int(number)) for number in ids[start:stop]]
