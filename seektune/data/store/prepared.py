"""Reads prepared examples: the index, and tokens of single examples from memory-mapped shards."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa

from seektune.data.example import Example
from seektune.data.examples import Weights
from seektune.data.store.index import COLUMNS, read_column
from seektune.data.store.manifest import Manifest
from seektune.data.store.shard import BATCH, shard_path

MOST_OPEN = 128
"""Shards that are open at once, as each takes a file descriptor."""


class PreparedExamples:
    """The examples of a prepared folder. The columns are memory-mapped; tokens are read one example at a time."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        columns = {name: read_column(folder, name) for name in COLUMNS}
        self.lengths = columns["lengths"]
        self.counted = columns["counted"]
        self.digests = columns["digests"]
        self.rows = columns["rows"]
        self.weights: Weights | None = columns["weights"] if manifest.weighted else None
        self._firsts = np.concatenate([[0], np.cumsum(manifest.shards)])
        self._open: OrderedDict[int, pa.RecordBatchFileReader] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.examples

    def example(self, number: int) -> Example:
        """An example; its arrays are read-only."""
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        batch_number, place = divmod(number - int(self._firsts[shard]), BATCH)
        batch = self._shard(shard).get_batch(batch_number)
        tokens = batch.column("tokens")
        start = tokens.offsets[place].as_py()
        size = tokens.offsets[place + 1].as_py() - start
        taught = batch.column("taught").values.slice(start, size)
        return Example(
            tokens.values.slice(start, size).to_numpy(),
            taught.to_numpy(zero_copy_only=False),
            batch.column("name")[place].as_py(),
            batch.column("weight")[place].as_py(),
        )

    def _shard(self, number: int) -> pa.RecordBatchFileReader:
        """An open shard; the one used least recently is closed."""
        if number not in self._open:
            self._open[number] = pa.ipc.open_file(pa.memory_map(str(shard_path(self.folder, number))))
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]
