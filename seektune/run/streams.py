"""The data of a run whose rows are streamed: the loader, and held-out rows, which are kept in memory."""

import hashlib
from collections.abc import Sequence
from itertools import islice

import torch

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings
from seektune.data.datasets.row_texts import WrittenConfig
from seektune.data.datasets.rows import RowsConfig
from seektune.data.examples import ExampleList
from seektune.data.sources.row import SourceRow
from seektune.data.step_data import Share
from seektune.data.streaming import StreamedDataset, StreamLoader, encoded, fitting_parts
from seektune.parallel.mesh import Mesh


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
        if isinstance(dataset, WrittenConfig) and dataset.weight_column is not None:
            raise ValueError(f"{dataset.log_name}: data.weight_column needs data.stream false")
    return found


def stream_of(dataset: RowsConfig, settings: EncodeSettings, cache: DataCache) -> StreamedDataset:
    """The training rows of a dataset."""
    return StreamedDataset(
        source=dataset.source("train", cache),
        encoder=dataset.encoder(settings),
        weight=dataset.weight,
        strict=dataset.on_bad_row == "error",
        held_out_share=dataset.held_out_share or 0.0,
    )


def stream_loader(
    data: Sequence[StreamedDataset], batch: BatchConfig, seed: int, pad_id: int, mesh: Mesh
) -> StreamLoader:
    """The loader of this process; numbers of a step are summed and positions gathered over the mesh.

    Raises:
        ValueError: the rows cannot be dealt out.
    """
    copies = mesh.dims.world // mesh.dims.data_size

    def total(taught: int, tokens: int) -> tuple[int, int]:
        sums = mesh.sum(torch.tensor([taught, tokens], device=mesh.device)) // copies
        return int(sums[0]), int(sums[1])

    share = Share(mesh.coords.dp, mesh.dims.data_size)
    return StreamLoader(data, batch, seed, pad_id, share, total, lambda own: mesh.ranks.each(lambda: own))


def held_out_rows(
    dataset: RowsConfig, settings: EncodeSettings, cache: DataCache, batch: BatchConfig, limit: int | None
) -> ExampleList:
    """The first held-out rows of a dataset, at most `limit`, in memory.

    Raises:
        ValueError: there are none, or a row is bad and may not be dropped.
    """
    data = stream_of(dataset, settings, cache)
    source = dataset.source("validation", cache)
    share = dataset.held_out_share
    rows = (source.row(record) for record in source.stream())
    good = (row for row in rows if isinstance(row, SourceRow))
    own = (row for row in good if share is None or row.digest < share * 2**64)
    chosen = list(islice(own, limit))
    examples = [part for example in encoded(data, chosen) for part in fitting_parts(example, batch)]
    if not examples:
        raise ValueError(f"{source.title}: no held-out rows")
    return ExampleList(examples)


def digest_of_streams(data: Sequence[StreamedDataset]) -> str:
    """Digest of where the rows are and how they are encoded; their tokens are not known before they are read."""
    text = "\n".join(f"{each.source.identity} {each.encoder.identity} {each.weight}" for each in data)
    return hashlib.sha256(text.encode()).hexdigest()
