"""The data of a training run: batches of its dataset, and the evaluation tasks."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from seektune.data.datasets.dataset import DataCache, Split
from seektune.data.example import Example
from seektune.data.loader import Loader, in_order
from seektune.data.packing import fitting
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.model.config import DeepseekV4Config
from seektune.parallel.mesh import Mesh
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.recipe.recipe import Recipe
from seektune.run.tasks import RunTasks, TaskData, make_tasks, question_sections
from seektune.sequence import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class TrainData:
    """The data of a run."""

    tokenizer: Tokenizer
    loader: Loader
    validation: list[Batch]
    tasks: RunTasks
    """Evaluation tasks before, during and after training."""
    source: str
    rows: int
    """Number of training rows."""
    digest: str
    """Digest of their tokens and labels, in order: a checkpoint's data position is valid only for the same rows."""
    own_answers: Sequence[Example] | None = None
    """The training rows, if the model wrote them itself."""


def prepare_data(recipe: Recipe, config: DeepseekV4Config, cache: DataCache, mesh: Mesh) -> TrainData:
    """Load the recipe's dataset, make batches of it, and create the evaluation tasks.

    Rank 0 downloads. `cache.note` also receives the numbers of loaded and dropped rows.

    Raises:
        ValueError: a row is invalid or too long, or a step's rows do not divide over the processes.
        OSError: the rows are not here and no source answers.
    """
    mesh.ranks.first(lambda: _fetch(recipe, cache))
    tokenizer = load_tokenizer(config.vocab_size)
    training, source = load_examples(recipe, "train", tokenizer, cache)
    held_out, _ = load_examples(recipe, "validation", tokenizer, cache)
    batch = recipe.batch
    rows = micro_batch_rows(mesh.dims, recipe.parallel, config, batch.global_size, batch.micro_size)
    if rows != batch.micro_size:
        own = batch.global_size // mesh.dims.data_size
        cache.note(
            f"note: micro-batches of {rows} rows, not {batch.micro_size}, of the {own} that a process gets in a step"
        )
        batch = batch.model_copy(update={"micro_size": rows})
    # rows of similar length need little padding
    held_out.sort(key=lambda example: len(example.tokens))
    validation = in_order(held_out, recipe.batch, tokenizer.pad_id)
    return TrainData(
        tokenizer=tokenizer,
        loader=Loader(training, batch, recipe.seed, tokenizer.pad_id),
        validation=validation,
        tasks=make_tasks(recipe, config, mesh.dims.world, TaskData(tokenizer, validation, cache)),
        source=source,
        rows=len(training),
        digest=digest_of(training),
    )


def load_examples(recipe: Recipe, split: Split, tokenizer: Tokenizer, cache: DataCache) -> tuple[list[Example], str]:
    """The examples of a split that fit `batch.length`, and their source.

    Raises:
        ValueError: a row is not as it should be, or an example does not fit and may not be left out.
        OSError: the rows are not here and no source answers.
    """
    limit = recipe.evaluate.limit if split == "validation" else None
    loaded = recipe.data.load(split, tokenizer, cache, limit)
    count = len(loaded.examples)
    if not count:
        raise ValueError(f"{loaded.source}: the {split} split has no examples")
    cache.note(f"{recipe.data.title}: {count:,} {split} rows from {loaded.source}")
    kept, left_out = fitting(loaded.examples, recipe.batch.length, recipe.data.overlong)
    if left_out:
        cache.note(
            f"{left_out:,} of {count:,} {split} rows are longer than batch.length {recipe.batch.length}: left out"
        )
    return kept, loaded.source


def _fetch(recipe: Recipe, cache: DataCache) -> None:
    for section in (recipe.data, *question_sections(recipe)):
        section.fetch(cache)


def digest_of(examples: Sequence[Example]) -> str:
    """Digest of the tokens and labels of rows, in order."""
    digest = hashlib.sha256()
    for example in examples:
        pairs = zip(example.tokens, example.taught, strict=True)
        labels = [token if taught else IGNORE_INDEX for token, taught in pairs]
        digest.update(array("q", [len(example.tokens), *example.tokens, *labels]).tobytes())
    return digest.hexdigest()
