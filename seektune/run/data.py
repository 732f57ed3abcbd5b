"""The data of a training run: steps of its datasets, held-out batches, and the evaluation tasks."""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from seektune.checkpoint import Ranks
from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.example import Example
from seektune.data.loader import JoinedBatches, Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.step_data import Share
from seektune.data.store.split import PreparedSplit, examples_of, prepare_split
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import DRAFTER, VALIDATION
from seektune.evaluate.task import Task
from seektune.evaluate.tasks import make_task, questions_section
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import encoding_of
from seektune.parallel.mesh import Mesh
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.recipe.recipe import Recipe
from seektune.run.drafter import drafter_is_measured
from seektune.sequence import IGNORE_INDEX, Batch

T = TypeVar("T")


@dataclass(frozen=True)
class TrainData:
    """The data of a run."""

    tokenizer: Tokenizer
    loader: Loader
    validation: Sequence[Batch]
    """Held-out batches of all datasets."""
    tasks: list[Task]
    """Evaluation tasks before and after training."""
    source: str
    rows: int
    """Number of training examples."""
    digest: str
    """Digest of their tokens and labels, in order: a checkpoint's data position is valid only for the same rows."""
    validation_by_dataset: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """Held-out batches of each dataset, by its name in logs; empty if there is only one."""
    own_answers: Sequence[Example] | None = None
    """The training rows, if the model wrote them itself."""


def prepare_data(recipe: Recipe, config: DeepseekV4Config, cache: DataCache, mesh: Mesh) -> TrainData:
    """Prepare the recipe's datasets, if the cache has not got them yet, and create loader and evaluation tasks.

    Rank 0 downloads. One process of each machine, or of all that share a cache, encodes; the others wait for it.
    `cache.note` also receives the numbers of loaded and dropped rows.

    Raises:
        ValueError: a row is invalid or too long, or a step's rows do not divide over the processes.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    mesh.ranks.first(lambda: _fetch(recipe, cache))
    settings = EncodeSettings(config.vocab_size, encoding_of(config))
    pad_id = settings.tokenizer.pad_id
    training = _on_all(mesh.ranks, lambda: open_splits(recipe, "train", settings, cache))
    held_out = _on_all(mesh.ranks, lambda: open_splits(recipe, "validation", settings, cache))
    batches = [in_order(split.examples, recipe.batch, pad_id) for split in held_out]
    validation = JoinedBatches(batches) if len(batches) > 1 else batches[0]
    mixture = Mixture(
        [split.examples for split in training], recipe.seed, [dataset.weight for dataset in recipe.datasets]
    )
    share = Share(mesh.coords.dp, mesh.dims.data_size)
    limit = recipe.evaluate.limit
    names = list(recipe.evaluate.task_names(recipe.datasets))
    if drafter_is_measured(recipe, config, mesh.dims.world):
        names = list(dict.fromkeys([*names, DRAFTER]))
    labels = [dataset.log_name for dataset in recipe.datasets]
    return TrainData(
        tokenizer=settings.tokenizer,
        loader=Loader(mixture, _batch_of(recipe, config, cache, mesh), pad_id, share),
        validation=validation,
        tasks=[make_task(name, recipe.datasets, validation, cache, config, limit) for name in names],
        source="; ".join(split.store.manifest.title for split in training),
        rows=len(mixture),
        digest=hashlib.sha256(" ".join(split.digest for split in training).encode()).hexdigest(),
        validation_by_dataset=dict(zip(labels, batches, strict=True)) if len(batches) > 1 else {},
    )


def open_splits(recipe: Recipe, split: Split, settings: EncodeSettings, cache: DataCache) -> list[PreparedSplit]:
    """The examples of a split of each dataset, prepared if need be, and notes about what is left out.

    Raises:
        ValueError: a row is not as it should be, or an example does not fit and may not be left out.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    return [_open_split(dataset, split, settings, cache, recipe) for dataset in recipe.datasets]


def _open_split(
    dataset: DataConfig, split: Split, settings: EncodeSettings, cache: DataCache, recipe: Recipe
) -> PreparedSplit:
    store = prepare_split(dataset, split, settings, cache)
    manifest = store.manifest
    if manifest.bad_rows:
        first = ": ".join(manifest.listed[0])
        cache.note(f"{manifest.bad_rows:,} of {manifest.rows:,} {split} rows are bad: left out, the first is {first}")
    found = examples_of(store, recipe.batch, recipe.evaluate.limit if split == "validation" else dataset.limit)
    cache.note(f"{dataset.title}: {found.chosen:,} {split} rows from {manifest.title}")
    if found.overlong:
        what = {"drop": "left out", "cut": "cut", "split": "split"}[recipe.batch.overlong]
        cache.note(
            f"{found.overlong:,} of {found.chosen:,} {split} rows are longer than batch.length "
            f"{recipe.batch.length}: {what}"
        )
    return found


def _batch_of(recipe: Recipe, config: DeepseekV4Config, cache: DataCache, mesh: Mesh) -> BatchConfig:
    """The section `batch`, with the rows of a micro-batch that processes and pipeline allow."""
    batch = recipe.batch
    rows = micro_batch_rows(mesh.dims, recipe.parallel, config, batch.global_size, batch.micro_size)
    if rows == batch.micro_size:
        return batch
    own = batch.global_size // mesh.dims.data_size
    cache.note(
        f"note: micro-batches of {rows} rows, not {batch.micro_size}, of the {own} that a process gets in a step"
    )
    return batch.model_copy(update={"micro_size": rows})


def _fetch(recipe: Recipe, cache: DataCache) -> None:
    asked = [name for name in recipe.evaluate.task_names(recipe.datasets) if name not in (VALIDATION, DRAFTER)]
    for section in (*recipe.datasets, *(questions_section(name, recipe.datasets) for name in asked)):
        section.fetch(cache)


def _on_all(ranks: Ranks, action: Callable[[], T]) -> T:
    """The result of `action` here, after it succeeded on every process; an error of one is raised on all."""
    found: list[T] = []
    ranks.each(lambda: found.append(action()))
    return found[0]


def digest_of(examples: Sequence[Example]) -> str:
    """Digest of the tokens and labels of rows, in order."""
    digest = hashlib.sha256()
    for example in examples:
        pairs = zip(example.tokens, example.taught, strict=True)
        labels = [token if taught else IGNORE_INDEX for token, taught in pairs]
        digest.update(array("q", [len(example.tokens), *example.tokens, *labels]).tobytes())
    return digest.hexdigest()
