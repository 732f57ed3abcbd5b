"""The command `data prepare`: encodes the rows of a recipe into the cache, before training would do it."""

from pathlib import Path

from seektune.data.datasets.dataset import DataCache, DataConfig, Split
from seektune.data.store.prepare import Runner
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.progress import shown_progress
from seektune.data.store.split import SPLITS, prepare_split
from seektune.data.store.workers import run_here
from seektune.io.console import counted, many, say
from seektune.recipe.recipe import Recipe
from seektune.run.build import read_config
from seektune.run.encode_settings import encode_settings


def prepare_data(recipe: Recipe, cache_dir: Path, run: Runner = run_here) -> list[PreparedExamples]:
    """Encode all splits of all datasets, unless the cache has them, and print where they are.

    Args:
        recipe: whose datasets are prepared.
        cache_dir: SeekTune's cache folder.
        run: what encodes the shards that are missing.

    Raises:
        ValueError: a row is bad and may not be dropped.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    config = read_config(recipe.model)
    settings = encode_settings(config)
    cache = DataCache(cache_dir, say)
    stores = []
    for dataset in recipe.datasets:
        dataset.fetch(cache)
        for split in splits_of(dataset):
            name = dataset.log_name if len(splits_of(dataset)) == 1 else f"{dataset.log_name} {split}"
            with shown_progress(name) as progress:
                store = prepare_split(dataset, split, settings, cache, progress, run)
            say(f"{name}: {_summary(store)}")
            stores.append(store)
    return stores


def splits_of(dataset: DataConfig) -> tuple[Split, ...]:
    """The splits that have rows of their own."""
    return SPLITS if dataset.held_out_share is None else SPLITS[:1]


def _summary(store: PreparedExamples) -> str:
    manifest = store.manifest
    taught = int(store.counted.sum(dtype="int64"))
    bad = f", {counted(manifest.bad_rows, 'bad row')} left out" if manifest.bad_rows else ""
    return (
        f"{counted(manifest.examples, 'example')} of {counted(manifest.rows, 'row')}{bad}, {many(manifest.tokens)} "
        f"tokens ({many(taught)} taught), in {store.folder}"
    )
