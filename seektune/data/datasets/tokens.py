"""The kind `tokens`: documents that are token ids already, in Megatron-Core's .bin and .idx files."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from seektune.data.datasets.dataset import DataCache, DataConfig, EncodeSettings, RowEncoder, Split
from seektune.data.datasets.rows import HeldOut
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.section import PathValue

if TYPE_CHECKING:
    from seektune.data.megatron import MegatronFile


class TokensConfig(DataConfig):
    """Documents of token ids, in Megatron-Core's .bin and .idx files; all tokens are taught."""

    title: ClassVar[str] = "Token files"
    kind: Literal["tokens"]
    """Kind of the rows."""
    path: PathValue
    """The files without .bin and .idx, or the name of one of them. Their ids must be those of this tokenizer."""
    validation: HeldOut = None
    """Held-out documents: a share such as 0.02, chosen by their tokens; or the path of other files."""

    @property
    def log_name(self) -> str:
        """As `DataConfig.log_name`."""
        return self.label or self.path.name

    @property
    def held_out_share(self) -> float | None:
        """As `DataConfig.held_out_share`."""
        return self.validation if isinstance(self.validation, float) else None

    def source(self, split: Split, cache: DataCache) -> RowSource:
        """As `DataConfig.source`."""
        if split == "train" or self.held_out_share is not None:
            return TokenSource(str(self.path))
        if self.validation is None:
            raise ValueError("data.validation must be a share such as 0.02, or the path of other token files")
        return TokenSource(str(self.validation))

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`."""
        return TokenEncoder(settings.vocab_size)


@dataclass(frozen=True)
class TokenSource(RowSource):
    """The documents of a pair of token files."""

    title: str

    @property
    def identity(self) -> str:  # type: ignore[override]
        """As `RowSource.identity`."""
        from seektune.data.megatron import paths_of

        stats = [(file, file.stat()) for file in paths_of(Path(self.title)) if file.exists()]
        return ", ".join(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)

    def count(self) -> int:
        """As `RowSource.count`."""
        return self._file.documents

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        for number in range(start, min(stop, self.count())):
            tokens = self._file.document(number)
            digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
            place = f"{self.title} document {number}"
            if len(tokens):
                yield SourceRow({"tokens": tokens}, place, int.from_bytes(digest, "little"))
            else:
                yield BadRow(place, "it has no tokens")

    @cached_property
    def _file(self) -> "MegatronFile":
        from seektune.data.megatron import open_megatron

        return open_megatron(Path(self.title))

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenSource, (self.title,)


@dataclass(frozen=True)
class TokenEncoder(RowEncoder):
    """Takes token ids as they are."""

    vocab_size: int

    @property
    def identity(self) -> str:  # type: ignore[override]
        """As `RowEncoder.identity`."""
        return f"tokens 1, vocabulary {self.vocab_size}"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        return [self._example(row) for row in rows]

    def _example(self, row: SourceRow) -> list[Example] | BadRow:
        tokens = row.values["tokens"]
        if (largest := int(tokens.max())) >= self.vocab_size:
            return BadRow(row.place, f"token {largest} is not below vocab_size {self.vocab_size}")
        return [Example(tokens, [True] * len(tokens), row.place)]
