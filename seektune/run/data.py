"""The data of a training run: steps of its datasets, held-out batches, and the evaluation tasks."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from seektune.checkpoint import Ranks
from seektune.data.answers import AnswerExamples, PairExamples, SingleAnswers
from seektune.data.config import BECOMES, BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, Split
from seektune.data.example import Example
from seektune.data.examples import Examples
from seektune.data.loader import JoinedBatches, Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.staged_loader import StagedLoader
from seektune.data.step_data import Share
from seektune.data.store.progress import shown_progress
from seektune.data.store.split import PreparedSplit, Stores, examples_of, prepare_dataset
from seektune.data.streaming.loader import StreamLoader
from seektune.data.streaming.row_stream import StreamedDataset
from seektune.data.tokenizer import Tokenizer
from seektune.model.config import DeepseekV4Config
from seektune.parallel.dims import ParallelDims
from seektune.parallel.mesh import Mesh
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.recipe.recipe import Recipe
from seektune.run.encode_settings import encode_settings
from seektune.run.objective_data import check_objective_data
from seektune.run.stages import prepared_loader
from seektune.run.streams import digest_of_streams, held_out_rows, stream_loader, stream_of, streamed
from seektune.run.tasks import RunTasks, TaskData, make_tasks, question_sections
from seektune.sequence import IGNORE_INDEX, Batch

T = TypeVar("T")
MakeBatch = Callable[[BatchConfig], BatchConfig]
"""Gives the section `batch` as the processes allow it, and a note, once the rows are there."""


@dataclass(frozen=True)
class TrainData:
    """The data of a run."""

    tokenizer: Tokenizer
    loader: Loader | StagedLoader | StreamLoader
    validation: Sequence[Batch]
    """Held-out batches of all datasets."""
    tasks: RunTasks
    """Evaluation tasks before, during and after training."""
    source: str
    rows: int | None
    """Number of training examples; None if they are streamed."""
    digest: str
    """Digest of their tokens and labels, in order: a checkpoint's data position is valid only for the same rows."""
    held_out_digest: str = ""
    """The same of the held-out rows; empty if rows are streamed."""
    validation_by_dataset: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """Held-out batches of each dataset, by its name in logs; empty if there is only one."""
    held_out: Sequence[Examples] = ()
    """Held-out rows of each dataset."""
    own_answers: Sequence[Example] | None = None
    """The training rows, if the model wrote them itself."""
    streams: Sequence[StreamedDataset] = ()
    """The training rows of each dataset, if they are streamed."""


def prepare_data(recipe: Recipe, config: DeepseekV4Config, cache: DataCache, mesh: Mesh) -> TrainData:
    """Prepare the recipe's datasets, if the cache has not got them yet, and create loader and evaluation tasks.

    Rank 0 downloads. One process of each machine, or of all that share a cache, encodes; the others wait for it.
    `cache.note` also receives the numbers of loaded and dropped rows.

    Raises:
        ValueError: a row is invalid or too long, or a step's rows do not divide over the processes.
        OSError: the rows are not here and no source answers, or the cache cannot be written.
    """
    check_objective_data(recipe)
    mesh.ranks.first(lambda: _fetch(recipe, cache))
    settings = encode_settings(config)
    rows = _streamed_rows if streamed(recipe.datasets) else _prepared_rows
    found = rows(recipe, settings, cache, mesh, lambda batch: _batch_of(batch, recipe, config, cache, mesh))
    shape = _held_out_batch(recipe, mesh.dims)
    batches = [in_order(examples, shape, settings.tokenizer.pad_id) for examples in found.held_out]
    validation = JoinedBatches(batches) if len(batches) > 1 else batches[0]
    labels = [dataset.log_name for dataset in recipe.datasets]
    by_dataset = dict(zip(labels, batches, strict=True)) if len(batches) > 1 else {}
    training = None if found.rows is None else found.token_ids
    task_data = TaskData(settings.tokenizer, validation, cache, by_dataset, training)
    return TrainData(
        tokenizer=settings.tokenizer,
        loader=found.loader,
        validation=validation,
        tasks=make_tasks(recipe, config, mesh.dims, task_data),
        source=found.source,
        rows=found.rows,
        digest=found.digest,
        held_out_digest=found.held_out_digest,
        validation_by_dataset=by_dataset,
        held_out=found.held_out,
        streams=found.streams,
    )


@dataclass(frozen=True)
class _Rows:
    """Training and held-out rows of all datasets."""

    loader: Loader | StagedLoader | StreamLoader
    training: Sequence[Examples]
    """Empty if they are streamed."""
    held_out: Sequence[Examples]
    source: str
    rows: int | None
    digest: str
    held_out_digest: str
    streams: Sequence[StreamedDataset] = ()

    def token_ids(self) -> Iterator[Sequence[int]]:
        """The token ids of each training example."""
        for examples in self.training:
            yield from (np.asarray(examples.example(number).tokens).tolist() for number in range(len(examples)))


def _prepared_rows(recipe: Recipe, settings: EncodeSettings, cache: DataCache, mesh: Mesh, batch: MakeBatch) -> _Rows:
    training, held_out = _on_all(mesh.ranks, lambda: _open_all(recipe, settings, cache))
    share = Share(mesh.coords.dp, mesh.dims.data_size)

    def cut_at(length: int) -> list[Examples]:
        return _compared(_on_all(mesh.ranks, lambda: _training_at(length, recipe, settings, cache)), recipe)

    def loader_of(mixture: Mixture, stage: BatchConfig) -> Loader:
        return Loader(mixture, batch(stage), settings.tokenizer.pad_id, share)

    loader = prepared_loader(recipe, _compared(training, recipe), cut_at, loader_of)
    return _Rows(
        loader=loader,
        training=[split.examples for split in training],
        held_out=_compared(held_out, recipe),
        source="; ".join(split.store.manifest.title for split in training),
        rows=sum(len(split.examples) for split in training),
        digest=_joined_digest(training),
        held_out_digest=_joined_digest(held_out),
    )


def _streamed_rows(recipe: Recipe, settings: EncodeSettings, cache: DataCache, mesh: Mesh, batch: MakeBatch) -> _Rows:
    sections = streamed(recipe.datasets)
    data = [stream_of(section, settings, cache) for section in sections]
    limit = recipe.evaluate.limit
    held_out = _on_all(
        mesh.ranks, lambda: [held_out_rows(section, settings, cache, recipe.batch, limit) for section in sections]
    )
    for each in data:
        cache.note(f"streaming {each.source.title}")
    return _Rows(
        loader=stream_loader(data, batch(recipe.batch), recipe.seed, settings.tokenizer.pad_id, mesh),
        training=[],
        held_out=held_out,
        source="; ".join(each.source.title for each in data),
        rows=None,
        digest=digest_of_streams(data),
        held_out_digest="",
        streams=data,
    )


def _open_all(
    recipe: Recipe, settings: EncodeSettings, cache: DataCache
) -> tuple[list[PreparedSplit], list[PreparedSplit]]:
    """Training and held-out examples of each dataset."""
    training = []
    held_out = []
    for dataset in recipe.datasets:
        with shown_progress(dataset.log_name) as progress:
            stores = prepare_dataset(dataset, settings, cache, progress)
        training.append(open_split(dataset, "train", stores, recipe, cache.note))
        held_out.append(open_split(dataset, "validation", stores, recipe, cache.note))
    return training, held_out


def _training_at(length: int, recipe: Recipe, settings: EncodeSettings, cache: DataCache) -> list[PreparedSplit]:
    """Training examples of each dataset at another length of rows; they are encoded already."""
    longer = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"length": length})})
    return [
        open_split(dataset, "train", prepare_dataset(dataset, settings, cache), longer, cache.note)
        for dataset in recipe.datasets
    ]


def _joined_digest(splits: Sequence[PreparedSplit]) -> str:
    return hashlib.sha256(" ".join(split.digest for split in splits).encode()).hexdigest()


def open_split(
    dataset: DataConfig, split: Split, stores: Stores, recipe: Recipe, note: Callable[[str], None]
) -> PreparedSplit:
    """The examples of a split of a dataset; `note` gets a line for each kind of rows that is left out or changed.

    Raises:
        ValueError: an example does not fit and may not be left out, or nothing is left.
        OSError: the cache cannot be written.
    """
    limit = recipe.evaluate.limit if split == "validation" else dataset.limit
    found = examples_of(dataset, split, stores, recipe.batch, limit)
    report = found.report
    note(f"{dataset.title}: {report.rows:,} {split} rows from {found.store.manifest.title}")
    for line in _left_out(dataset, split, found, recipe.batch):
        note(line)
    return found


def _left_out(dataset: DataConfig, split: Split, found: PreparedSplit, batch: BatchConfig) -> Iterator[str]:
    manifest = found.store.manifest
    report = found.report
    dropped = ": left out" if dataset.duplicates == "drop" else "; data.duplicates drop leaves them out"
    if manifest.bad_rows:
        first = ": ".join(manifest.listed[0])
        yield f"{manifest.bad_rows:,} of {manifest.rows:,} {split} rows are bad: left out; the first is {first}"
    if report.duplicates:
        yield f"{report.duplicates:,} {split} rows repeat an earlier one{dropped}"
    if report.also_held_out:
        yield f"{report.also_held_out:,} {split} rows are held out too{dropped}"
    if report.overlong:
        many = f"{report.overlong:,} of {report.examples:,} {split} rows"
        yield f"{many} are longer than batch.length {batch.length}: {BECOMES[batch.overlong]}"
    if report.untaught:
        yield f"{report.untaught:,} parts of them have no taught token: left out"


def _held_out_batch(recipe: Recipe, dims: ParallelDims) -> BatchConfig:
    """The section `batch` with as many held-out rows at once as all data-parallel processes take in a micro-batch.

    Of objectives that compare answers, KTO depends on which rows are together: those are as on one device.
    """
    if recipe.objective.compares:
        return recipe.batch
    return recipe.batch.model_copy(update={"micro_size": recipe.batch.micro_size * dims.data_size})


def _batch_of(
    batch: BatchConfig, recipe: Recipe, config: DeepseekV4Config, cache: DataCache, mesh: Mesh
) -> BatchConfig:
    """The section `batch`, with the rows of a micro-batch that processes and pipeline allow."""
    rows = micro_batch_rows(mesh.dims, recipe.parallel, config, batch.global_size, batch.micro_size)
    if rows == batch.micro_size:
        return batch
    own = batch.global_size // mesh.dims.data_size
    cache.note(
        f"note: micro-batches of {rows} rows, not {batch.micro_size}, of the {own} that a process gets in a step"
    )
    return batch.model_copy(update={"micro_size": rows})


def _compared(splits: Sequence[PreparedSplit], recipe: Recipe) -> list[Examples]:
    """The examples of each dataset as the objective compares them: KTO has single answers."""
    found = [split.examples for split in splits]
    if recipe.objective.name != "kto":
        return found
    singles = [each.singles() if isinstance(each, PairExamples) else SingleAnswers.labelled(each) for each in found]
    return [AnswerExamples(each, recipe.batch.length) for each in singles]


def _fetch(recipe: Recipe, cache: DataCache) -> None:
    for section in (*recipe.datasets, *question_sections(recipe)):
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
