"""The statistics of a dataset as one object of JSON, from which text and HTML are made."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from seektune.data.stats.dataset_stats import DatasetStats
from seektune.data.stats.lengths import histogram, row_lengths
from seektune.data.store.select import Digests

NAMED = 30
"""Bad rows and tools that are listed by name."""
QUANTILES = {"shortest": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}


def summarize(stats: DatasetStats, own_length: int, others: Mapping[str, Digests]) -> dict[str, Any]:
    """The numbers of a dataset.

    Args:
        stats: those of its rows.
        own_length: the recipe's `batch.length`.
        others: digests of the rows of other datasets and splits by name, for rows that are in both.
    """
    return {
        "rows": stats.rows,
        "bad_rows": stats.bad_rows,
        "bad": [str(row) for row in stats.bad[:NAMED]],
        "examples": stats.examples,
        "tokens": int(stats.lengths.sum()),
        "taught_tokens": int(sum(stats.counted)),
        "split_rows": stats.split_rows,
        "repeated_tokens": stats.repeated,
        "empty_reasoning": stats.empty_reasoning,
        **_lengths(stats, own_length),
        "longest": [{"tokens": tokens, "name": name} for tokens, name in stats.longest],
        "tools": {
            "described": _most(stats.tools.described),
            "called": _most(stats.tools.called),
            "not_described": _most(stats.tools.unknown),
        },
        "tool_names": len(stats.tools.described),
        "tool_calls": stats.tools.called.total(),
        "scripts": _shares(stats.scripts),
        "taught_scripts": _shares(stats.taught_scripts),
        "duplicates": _duplicates(stats, others),
    }


def _lengths(stats: DatasetStats, own_length: int) -> dict[str, Any]:
    if not stats.examples:
        return {"lengths": {}, "histogram": [], "batch_lengths": []}
    values = np.quantile(stats.lengths, list(QUANTILES.values()), method="inverted_cdf")
    return {
        "lengths": dict(zip(QUANTILES, values.tolist(), strict=True)),
        "histogram": [asdict(each) for each in histogram(stats.lengths)],
        "batch_lengths": [asdict(each) for each in row_lengths(stats.lengths, own_length)],
    }


def _duplicates(stats: DatasetStats, others: Mapping[str, Digests]) -> dict[str, Any]:
    """Rows that repeat an earlier one, and how many distinct rows each other dataset has as well."""
    distinct = np.unique(stats.digests)
    shared = {name: int(np.isin(distinct, other).sum()) for name, other in others.items()}
    return {
        "repeated_rows": stats.repeated_rows,
        "also_in": {name: count for name, count in shared.items() if count},
    }


def _most(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common(NAMED))


def _shares(counts: Counter[str]) -> dict[str, float]:
    """The share of each script in all letters, the largest first."""
    return {name: count / counts.total() for name, count in counts.most_common()}
