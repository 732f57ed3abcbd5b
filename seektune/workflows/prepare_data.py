"""The command `data prepare`: encodes the rows of a recipe into the cache, before training would do it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seektune.data.datasets.dataset import DataCache, DataConfig, Split
from seektune.data.megatron import paths_of, write_megatron
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.progress import shown_progress
from seektune.data.store.ray_cluster import ray_runner
from seektune.data.store.split import SPLITS, Stores, chosen, prepare_split
from seektune.data.store.workers import run_here
from seektune.io.atomic import refuse_existing
from seektune.io.console import counted, many, say
from seektune.recipe.recipe import Recipe
from seektune.run.data import open_split
from seektune.run.encode_settings import settings_without_weights
from seektune.run.streams import streamed


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `data prepare`."""

    ray: str | None = None
    """Address of a Ray cluster that encodes; None encodes on this machine."""
    megatron: Path | None = None
    """Folder that also gets the chosen examples as Megatron's token files."""


def prepare_data(recipe: Recipe, cache_dir: Path, options: PrepareOptions = PrepareOptions()) -> list[Stores]:
    """Encode all splits of all datasets, unless the cache has them, and print where they are.

    Raises:
        ValueError: a row is bad or too long and may not be dropped, the rows are streamed, or token files would replace
            others.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    if streamed(recipe.datasets):
        raise ValueError("data.stream encodes rows while training reads them; there is nothing to prepare")
    settings = settings_without_weights(recipe.model)
    cache = DataCache(cache_dir, say)
    run = run_here if options.ray is None else ray_runner(options.ray)
    found: list[Stores] = []
    for dataset in recipe.datasets:
        dataset.fetch(cache)
        stores: dict[Split, PreparedExamples] = {}
        for split in splits_of(dataset):
            name = dataset.log_name if len(splits_of(dataset)) == 1 else f"{dataset.log_name} {split}"
            with shown_progress(name) as progress:
                stores[split] = prepare_split(dataset, split, settings, cache, progress, run)
            say(f"{name}: {_summary(stores[split])}")
        found.append({split: stores.get(split, stores["train"]) for split in SPLITS})
        for split in SPLITS:  # chooses the rows, so that training starts at once
            open_split(dataset, split, found[-1], recipe, say)
        if options.megatron is not None:
            export_megatron(dataset, found[-1], options.megatron, settings.vocab_size)
    return found


def export_megatron(dataset: DataConfig, stores: Stores, folder: Path, vocab_size: int) -> None:
    """Write the chosen examples of both splits as Megatron's token files, one document each; say what they lack.

    Raises:
        ValueError: a file exists already.
        OSError: they could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        prefix = folder / f"{dataset.log_name}-{split}"
        for file in paths_of(prefix):
            refuse_existing(file)
        store = stores[split]
        ids = chosen(dataset, split, stores).ids
        documents = (np.asarray(store.example(int(number)).tokens, np.uint32) for number in ids)
        tokens = write_megatron(prefix, documents, vocab_size)
        say(f"{prefix}.bin and .idx: {counted(len(ids), 'document')}, {many(tokens)} tokens")
        untaught = tokens - int(store.counted[ids].sum(dtype=np.int64)) - len(ids)
        if untaught > 0:
            say(f"note: {many(untaught)} of these tokens are only read here; Megatron's files do not say which")


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
