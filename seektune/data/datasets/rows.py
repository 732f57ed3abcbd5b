"""Base of datasets of the user's own rows."""

from pathlib import Path

from seektune.data.datasets.dataset import DataCache, DataConfig, Split
from seektune.data.datasets.records import split_files
from seektune.data.sources.row import SourceRow
from seektune.data.sources.source import RowList, RowSource
from seektune.io.jsonl import read_jsonl
from seektune.section import PathValue


class RowsConfig(DataConfig):
    """Rows of files."""

    path: PathValue
    """Folder with train and validation as .jsonl."""

    @property
    def log_name(self) -> str:
        """As `DataConfig.log_name`."""
        return self.label or self.path.name

    def source(self, split: Split, cache: DataCache) -> RowSource:
        """As `DataConfig.source`."""
        files = [self.path] if self.path.is_file() else split_files(self.path, split)
        rows = [SourceRow.of(values, _short(place)) for file in files for place, values in read_jsonl(file)]
        return RowList(str(self.path), str(files), rows)


def _short(place: str) -> str:
    return Path(place).name
