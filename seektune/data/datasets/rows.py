"""Datasets whose rows come from files, folders, URLs or the Hub: the keys that say from where."""

from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from seektune.data.datasets.dataset import DataCache, DataConfig, Split
from seektune.data.sources.data_file import DataFile
from seektune.data.sources.files import FileSource
from seektune.data.sources.find import files_of, split_files
from seektune.data.sources.hub import HubDataset
from seektune.paths import expand_path

FOLDER = "rows"
"""In the cache folder: copies of rows and lists of the Hub's files."""


def _held_out(value: object) -> object:
    if isinstance(value, str):
        return expand_path(value)
    if isinstance(value, bool) or not (value is None or (isinstance(value, int | float) and 0 < value < 1)):
        raise ValueError(f"must be a share between 0 and 1, a path or the name of a split, not {value!r:.80}")
    return value


def _place(text: str) -> str:
    return expand_path(text).removeprefix("file://")


NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Place = Annotated[str, AfterValidator(_place)]
"""A local path, a glob, or a URL."""
Share = Annotated[float, Field(gt=0, lt=1)]
HeldOut = Annotated[Share | str | None, BeforeValidator(_held_out)]


class RowsConfig(DataConfig):
    """Base of datasets whose rows come from files, folders, URLs or the Hub."""

    path: Place | None = None
    """File, folder, glob or URL of .jsonl, .json, .csv, .parquet or .arrow files, plain or as .gz or .zst."""
    hub: NonEmpty | None = None
    """Id of a dataset on the Hugging Face Hub, in place of `path`."""
    name: NonEmpty | None = None
    """Configuration of the Hub's dataset; null = the default one."""
    revision: NonEmpty | None = None
    """Branch, tag or commit of the Hub's dataset; null = the main branch."""
    split: NonEmpty = "train"
    """Split of the Hub's dataset to train on; in a folder, how the names of its files begin, if some do."""
    validation: HeldOut = None
    """Held-out rows: a share such as 0.02, chosen by the rows' content; a path; or a split. null = the split
    `validation` of the Hub's dataset or the folder."""

    stream: bool = False
    """Whether rows are encoded while training reads them, for data that does not fit a disk; no copy is kept."""

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if self.path is not None and self.hub is not None:
            raise ValueError("path and hub both say where the rows are; set one of them to null")
        for key, value in (("name", self.name), ("revision", self.revision)):
            if value is not None and self.hub is None:
                raise ValueError(f"{key} is for a dataset on the Hub; set hub, or {key} to null")
        return self

    @property
    def log_name(self) -> str:
        """As `DataConfig.log_name`."""
        return self.label or _last_part(self.path or self.hub or self.kind)

    @property
    def held_out_share(self) -> float | None:
        """As `DataConfig.held_out_share`."""
        return self.validation if isinstance(self.validation, float) else None

    def fetch(self, cache: DataCache) -> None:
        """As `DataConfig.fetch`."""
        if self.hub is not None:
            self._on_hub(self.hub, cache).refresh(cache.note)

    def source(self, split: Split, cache: DataCache) -> FileSource:
        """As `DataConfig.source`."""
        own = split == "validation" and self.held_out_share is None
        title, files = self._files(str(self.validation or split) if own else self.split, cache)
        return FileSource.of(title, files, cache.folder / FOLDER)

    def _files(self, split: str, cache: DataCache) -> tuple[str, list[DataFile]]:
        """The place of a split, for messages, and its files."""
        if self.hub is not None:
            return f"{self.hub} {split}", self._on_hub(self.hub, cache).files(split)
        if self.path is None:
            raise ValueError(f"data.path or data.hub must say where the {self.kind} rows are")
        if split == self.split:
            return self.path, files_of(self.path, split)
        if found := split_files(self.path, split):
            return self.path, found
        if self.validation is None:
            files_of(self.path, split)  # a place that does not exist is named as such
            raise ValueError(
                f"{self.path}: no {split} files; set data.validation to a share such as 0.02, or to a path"
            )
        return split, files_of(split, "validation")

    def _on_hub(self, hub: str, cache: DataCache) -> HubDataset:
        return HubDataset(hub, self.name, self.revision, cache.folder / FOLDER / "hub")


def _last_part(place: str) -> str:
    """The name of a file without its suffixes, of a folder, or of the folder of a glob."""
    parts = [part for part in PurePosixPath(place).parts if not set(part) & set("*?[")]
    return parts[-1].split(".")[0] or parts[-1] if parts else place
