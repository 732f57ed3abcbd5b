"""The command `data stats`: numbers of the rows that a recipe trains on."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from seektune.data.datasets.dataset import DataCache
from seektune.data.stats.measure import count_tools, measure
from seektune.data.stats.summary import summarize
from seektune.data.store.progress import shown_progress
from seektune.data.store.select import Digests
from seektune.data.store.split import stores_to_inspect
from seektune.io.atomic import refuse_existing, write_atomically
from seektune.io.console import PartsDone, part_bar, say
from seektune.recipe.recipe import Recipe
from seektune.run.encode_settings import settings_without_weights
from seektune.workflows.data_stats_html import stats_page
from seektune.workflows.data_stats_text import stats_lines


@dataclass(frozen=True)
class StatsOptions:
    """What is written."""

    as_json: bool = False
    html: Path | None = None


def data_stats(recipe: Recipe, asked: StatsOptions, cache_dir: Path) -> None:
    """Print the statistics of the training rows of every dataset, or write them as a page.

    Raises:
        ValueError: the recipe is invalid, a source is damaged, or the page exists already.
        OSError: rows cannot be read, or the page cannot be written.
    """
    if asked.html is not None:
        refuse_existing(asked.html)
    summaries = measured(recipe, DataCache(cache_dir, lambda line: None if asked.as_json else say(line)))
    if asked.html is not None:
        write_atomically(asked.html, stats_page(summaries))
    if asked.as_json:
        say(json.dumps(summaries, indent=2, ensure_ascii=False))
        return
    for summary in summaries:
        for line in stats_lines(summary):
            say(line)
    if asked.html is not None:
        say(f"page: {asked.html}")


def measured(recipe: Recipe, cache: DataCache) -> list[dict[str, Any]]:
    """The summary of each dataset.

    Raises:
        ValueError, OSError: as `data_stats`.
    """
    settings = settings_without_weights(recipe.model)
    found = []
    digests: dict[str, Digests] = {}
    for dataset in recipe.datasets:
        dataset.fetch(cache)
        with shown_progress(dataset.log_name) as prepared:
            stores = stores_to_inspect(dataset, settings, cache, prepared)
        with part_bar(f"measuring {dataset.log_name}") as bar:
            stats = measure(dataset, stores, settings.tokenizer, partial(_rows_done, bar))
        stats.tools = count_tools(dataset, dataset.source("train", cache), stores)
        found.append((dataset, stores["train"].manifest.title, stats))
        digests[f"{dataset.log_name} train"] = stats.digests
        if dataset.held_out_share is None and "validation" in stores:  # rows of a share are on one side
            digests[f"{dataset.log_name} validation"] = stores["validation"].digests
    return [
        {
            "dataset": dataset.log_name,
            "kind": dataset.kind,
            "source": title,
            "batch_length": recipe.batch.length,
            "why_several": dataset.several,
            "limit": dataset.limit,
            **summarize(stats, recipe.batch.length, _others(digests, f"{dataset.log_name} train")),
        }
        for dataset, title, stats in found
    ]


def _rows_done(bar: PartsDone, done: int, of: int) -> None:
    bar(done, of, "rows")


def _others(digests: dict[str, Digests], own: str) -> dict[str, Digests]:
    return {name: each for name, each in digests.items() if name != own}
