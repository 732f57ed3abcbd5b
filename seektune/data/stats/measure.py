"""Measures a dataset: every row is read and encoded once, a chunk of rows at a time."""

from collections.abc import Callable

import numpy as np

from seektune.data.conversations.forms import read_conversation
from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import DataConfig, EncodeSettings
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.data.stats.dataset_stats import DatasetStats
from seektune.data.stats.tokens import TokenCounter
from seektune.data.store.select import held_out

CHUNK = 256
"""Rows that are encoded together."""


def measure(
    dataset: DataConfig, source: RowSource, settings: EncodeSettings, progress: Callable[[int, int], None]
) -> DatasetStats:
    """The statistics of the training rows of a source; `progress` is called with rows done and in all.

    Raises:
        ValueError: the dataset cannot be encoded with these settings, or a file is damaged.
        OSError: a file cannot be read.
    """
    encoder = dataset.encoder(settings)
    stats = DatasetStats()
    counter = TokenCounter(settings.tokenizer)
    count = source.count()
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        found = list(source.read(start, stop))
        rows = [row for row in found if isinstance(row, SourceRow) and not is_held_out(dataset, row)]
        bad = [row for row in found if isinstance(row, BadRow)]
        stats.rows += len(rows) + len(bad)
        stats.bad += bad
        for row, examples in zip(rows, encoder.encode(rows), strict=True):
            stats.digests.append(row.digest)
            if isinstance(examples, BadRow):
                stats.bad.append(examples)
                continue
            stats.add(examples)
            counter.add(examples, stats)
            if isinstance(dataset, ChatConfig):
                stats.tools.add(read_conversation(row.values, dataset.columns))
        progress(stop, count)
    return stats


def is_held_out(dataset: DataConfig, row: SourceRow) -> bool:
    """Whether a row of the training source is held out for validation."""
    share = dataset.held_out_share
    return share is not None and bool(held_out(np.array([row.digest], np.uint64), share)[0])
