"""What a training run needs before its first step: rows, tokenizer, batches and the model."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seektune.checkpoint import ONE_RANK, Ranks
from seektune.data.config import DataConfig
from seektune.data.datasets.examples import hellaswag_examples
from seektune.data.datasets.hellaswag import HellaswagData, HellaswagRow, load_hellaswag
from seektune.data.loader import Loader, in_order
from seektune.data.packing import Example, fitting
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.hellaswag import spread_evenly
from seektune.model.config import DeepseekV4Config
from seektune.parallel.dims import ParallelDims, rows_at_a_time
from seektune.parallel.mesh import Mesh
from seektune.recipe.recipe import Recipe
from seektune.sequence import Batch

Say = Callable[[str], None]
ONE_PROCESS = Mesh.alone().dims


@dataclass(frozen=True)
class TrainData:
    """The data of a run in the form that training reads."""

    tokenizer: Tokenizer
    loader: Loader
    validation: list[Batch]
    questions: list[HellaswagRow]
    """Validation rows of the exam; `validation` teaches their right endings."""
    source: str
    rows: int
    """Rows that are trained on."""
    digest: str
    """Of their tokens and labels, in order: a checkpoint's position means something only in the same rows."""


def prepare_data(
    recipe: Recipe, data: HellaswagData, config: DeepseekV4Config, say: Say, plan: ParallelDims = ONE_PROCESS
) -> TrainData:
    """Rows into batches.

    Raises:
        ValueError: an example does not fit into a row, or a step's rows do not fit the processes.
    """
    batch = recipe.batch
    rows = rows_at_a_time(plan, recipe.parallel, config, batch.global_size, batch.micro_size)
    if rows != batch.micro_size:
        own = batch.global_size // plan.data_size
        say(f"note: micro-batches of {rows} rows, not {batch.micro_size}, of the {own} that a process gets in a step")
        batch = batch.model_copy(update={"micro_size": rows})
    tokenizer = load_tokenizer(config.vocab_size)
    training = _examples(data.train, tokenizer, recipe, "training", say)
    questions = spread_evenly(data.validation, recipe.evaluate.limit)
    held_out = _examples(questions, tokenizer, recipe, "validation", say)
    # neighbours of one length leave little padding
    held_out.sort(key=lambda example: len(example.tokens))
    return TrainData(
        tokenizer=tokenizer,
        loader=Loader(training, batch, recipe.seed, tokenizer.pad_id),
        validation=in_order(held_out, recipe.batch, tokenizer.pad_id),
        questions=questions,
        source=data.source,
        rows=len(training),
        digest=_digest(training),
    )


def read_rows(section: DataConfig, cache_dir: Path, say: Say, ranks: Ranks = ONE_RANK) -> HellaswagData:
    """The rows that the recipe names; says where they come from. What is fetched is fetched by the first process.

    Raises:
        ValueError: a file or row is not as it should be.
        OSError: the rows are not here and no source answers.
    """
    found: list[HellaswagData] = []
    ranks.first(lambda: found.append(load_hellaswag(section.path, cache_dir, say)))
    return found[0] if found else load_hellaswag(section.path, cache_dir, say)


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", [len(example.tokens), *example.tokens, *example.labels]).tobytes())
    return digest.hexdigest()


def _examples(rows: Sequence[HellaswagRow], tokenizer: Tokenizer, recipe: Recipe, what: str, say: Say) -> list[Example]:
    kept, left_out = fitting(hellaswag_examples(rows, tokenizer), recipe.batch.length, recipe.data.overlong)
    if left_out:
        say(f"{left_out:,} of {len(rows):,} {what} rows are longer than batch.length {recipe.batch.length}: left out")
    return kept
