"""The index of prepared examples: columns as .npy files, memory-mapped, so that planning reads no tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seektune.data.store.shard import shard_path
from seektune.io.atomic import replacing, write_all

COLUMNS = {"lengths": np.int32, "counted": np.int32, "digests": np.uint64, "rows": np.int64, "weights": np.float32}
"""Tokens, counted tokens, digest of the row, its number in the source and weight in the loss, for each example."""
_OF_SHARDS = {"counted": "counted", "digests": "digest", "rows": "row", "weights": "weight"}


def write_index(folder: Path, shards: Sequence[int]) -> int:
    """Write the columns of all shards, given their numbers of examples; returns the length of the longest example.

    Raises:
        OSError: a column could not be written; no half of it is left.
    """
    longest = 0
    for name, dtype in COLUMNS.items():
        with column_file(folder / f"{name}.npy", dtype, sum(shards)) as write:
            for number in range(len(shards)):
                part = _shard_column(shard_path(folder, number), name)
                write(part)
                if name == "lengths" and len(part):
                    longest = max(longest, int(part.max()))
    return longest


def read_column(folder: Path, name: str) -> NDArray:
    """A column, memory-mapped and read-only."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")


@contextmanager
def column_file(path: Path, dtype: type, count: int) -> Iterator[Callable[[NDArray], None]]:
    """A .npy file of `count` numbers, written part by part with the function that the block gets."""
    with replacing(path) as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda part: write_all(file, part.astype(dtype, copy=False).tobytes(), path)


def _shard_column(path: Path, name: str) -> NDArray:
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        if name == "lengths":
            parts = [np.diff(batch.column("tokens").offsets.to_numpy()) for batch in batches]
        else:
            parts = [batch.column(_OF_SHARDS[name]).to_numpy() for batch in batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
