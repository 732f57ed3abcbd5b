"""The data of a run whose rows are streamed: the loader, and held-out rows, which are kept in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from seektune.data.config import BECOMES, BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings
from seektune.data.datasets.row_texts import WrittenConfig
from seektune.data.datasets.rows import RowsConfig
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader
from seektune.data.sources.files import FileSource
from seektune.data.sources.row import BadRow, SourceRow, dropped
from seektune.data.staged_loader import StagedLoader
from seektune.data.step_data import Share
from seektune.data.streaming.fitting import fitting_parts
from seektune.data.streaming.loader import StreamLoader, readers_of
from seektune.data.streaming.row_stream import ReaderNumber, RowStream, StreamedDataset
from seektune.io.console import counted
from seektune.parallel.mesh import Mesh

TRIED = 64
"""Rows of a stream that are read to see whether it can be; more if it has more readers."""


def streamed(datasets: Sequence[DataConfig]) -> list[RowsConfig]:
    """The datasets, if they are streamed; none if they are prepared.

    Raises:
        ValueError: some are streamed and some not, or a key needs prepared rows.
    """
    found = [dataset for dataset in datasets if isinstance(dataset, RowsConfig) and dataset.stream]
    if found and len(found) < len(datasets):
        raise ValueError("data.stream: all datasets of a recipe are streamed, or none; set the same for each")
    for dataset in found:
        if dataset.duplicates == "drop" or dataset.limit is not None:
            raise ValueError(
                f"{dataset.log_name}: data.duplicates drop and data.limit look at all rows; they need data.stream false"
            )
    return found


def stream_of(dataset: RowsConfig, settings: EncodeSettings, cache: DataCache) -> StreamedDataset:
    """The training rows of a dataset."""
    return StreamedDataset(
        source=dataset.source("train", cache),
        encoder=dataset.encoder(settings),
        weight=dataset.weight,
        strict=dataset.on_bad_row == "error",
        held_out_share=dataset.held_out_share or 0.0,
        weighted=isinstance(dataset, WrittenConfig) and dataset.weight_column is not None,
    )


def stream_loader(
    data: Sequence[StreamedDataset], batch: BatchConfig, seed: int, pad_id: int, mesh: Mesh
) -> StreamLoader:
    """The loader of this process; numbers of a step are summed and positions gathered over the mesh.

    Raises:
        ValueError: the readers cannot be divided evenly among the data-parallel groups.
    """
    copies = mesh.dims.world // mesh.dims.data_size

    def total(own: list[float]) -> list[float]:
        sums = mesh.sum(torch.tensor(own, dtype=torch.float64, device=mesh.device)) / copies
        return [float(each) for each in sums]

    share = Share(mesh.coords.dp, mesh.dims.data_size)
    return StreamLoader(data, batch, seed, pad_id, share, total, lambda own: mesh.ranks.each(lambda: own))


def try_stream(dataset: RowsConfig, settings: EncodeSettings, cache: DataCache, batch: BatchConfig) -> str:
    """Read the first rows of a stream, and say where they are from.

    Raises:
        ValueError: a row is bad or too long and may not be dropped, all are left out, or they are too few.
        OSError: they cannot be read.
    """
    data = stream_of(dataset, settings, cache)
    readers = readers_of(batch.global_size)
    stream = RowStream(data, 0, ReaderNumber(0, 1, seed=0))
    first = stream.examples(max(TRIED, readers), batch, once=True)
    if not first:
        raise ValueError(
            f"{data.source.title}: its first rows give nothing to train on; see batch.overlong and data.on_bad_row"
        )
    if stream.epoch > 0:  # few rows: some readers may have none
        for number in range(readers):
            RowStream(data, 0, ReaderNumber(number, readers, seed=0)).examples(1, batch)
    held_out_rows(dataset, settings, cache, batch, TRIED)
    return f"streamed from {data.source.title}; {counted(len(first), 'example')} of its first rows can be read"


def left_out_lines(loader: Loader | StagedLoader | StreamLoader) -> list[str]:
    """What streams left out or shortened, for the end of a run; every process calls it."""
    if not isinstance(loader, StreamLoader):
        return []
    found = loader.left_out()
    bad = [BadRow(place, reason) for place, reason in found.listed]
    lines = [f"streamed data: {dropped(bad, found.bad_rows)}"] if bad else []
    if found.overlong:
        batch = loader.batch
        what = f"{found.overlong:,} examples were longer than batch.length {batch.length}: {BECOMES[batch.overlong]}"
        lines.append(f"streamed data: {what}")
    return lines


def held_out_rows(
    dataset: RowsConfig, settings: EncodeSettings, cache: DataCache, batch: BatchConfig, limit: int | None
) -> ExampleList:
    """The first held-out rows of a dataset, at most `limit`, in memory; a note lists bad ones.

    Raises:
        ValueError: there are none, or a row is bad or too long and may not be dropped.
    """
    source = dataset.source("validation", cache)
    chosen = dataset.good(islice(_held_out(dataset, source), limit), cache.note)
    encoded = dataset.good(dataset.encoder_of("validation", settings).encode(chosen), cache.note)
    examples = [part for row in encoded for example in row for part in fitting_parts(example, batch)]
    if not examples:
        raise ValueError(f"{source.title}: no held-out rows")
    return ExampleList(examples)


def _held_out(dataset: RowsConfig, source: FileSource) -> Iterator[SourceRow | BadRow]:
    """The held-out rows of a source; a bad row of one that is also trained on is left to training."""
    share = dataset.held_out_share
    for row in map(source.row, source.stream()):
        if share is None or (isinstance(row, SourceRow) and row.is_held_out(share)):
            yield row


def digest_of_streams(data: Sequence[StreamedDataset]) -> str:
    """Digest of where the rows are and how they are encoded; their tokens are not known before they are read."""
    text = "\n".join(f"{each.source.identity} {each.encoder.identity} {each.weight}" for each in data)
    return hashlib.sha256(text.encode()).hexdigest()
