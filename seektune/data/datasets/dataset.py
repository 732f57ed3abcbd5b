"""The interface of datasets: a recipe section that has a source of rows, an encoder of them, and describes itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import PositiveInt

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.example import Example
from seektune.data.question import Question
from seektune.data.sources.row import BadRow, SourceRow, dropped
from seektune.data.sources.source import RowSource
from seektune.data.split import Split
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.section import Positive, Section

Item = TypeVar("Item")
CACHED = ", cached in "
"""In a source description, between the origin of the rows and the local folder that caches them."""


@dataclass(frozen=True)
class DataCache:
    """The cache of downloaded data."""

    folder: Path
    note: Callable[[str], None]
    """Called with a line for each download."""


@dataclass(frozen=True)
class DataCard:
    """A dataset's description for model cards."""

    kind: str
    """The kind in recipes."""
    name: str
    """The display name."""
    text: str
    """Description of the training data, in Markdown."""
    hub_id: str | None = None
    """Id on the Hugging Face Hub; None for the user's own rows."""
    language: str | None = None
    """Language code on the Hub, such as `en`."""


@dataclass(frozen=True)
class EncodeSettings:
    """What an encoder takes from the model. Picklable."""

    vocab_size: int
    encoding: EncodingName = DEFAULT
    """The chat encoding of the checkpoint, unless the dataset chooses another."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the vocabulary, made once in each process, as every shard is encoded with new settings."""
        return _tokenizer(self.vocab_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodeSettings, (self.vocab_size, self.encoding)


@lru_cache(maxsize=2)
def _tokenizer(vocab_size: int) -> Tokenizer:
    return load_tokenizer(vocab_size)


class RowEncoder(ABC):
    """Turns rows into examples. Picklable, so that other processes can encode a part of a source."""

    identity: str
    """Names everything that changes the tokens: part of the key of prepared examples."""

    @abstractmethod
    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """The examples of each row, usually one and never none, or why it has none."""


class DataConfig(Section, ABC):
    """Base of datasets; each kind has its own section with the keys that it needs."""

    title: ClassVar[str]
    """The display name."""
    has_questions: ClassVar[bool] = False
    """Whether the dataset has `questions`; its kind is then also an evaluation task."""
    several: ClassVar[str] = "the row holds several"
    """Why a row has several examples, for messages."""
    paired: ClassVar[bool] = False
    """Whether each row has two examples, of which an objective prefers the first."""
    labelled: ClassVar[bool] = False
    """Whether the sign of an example's weight says if it is a good or a bad response."""
    kind: str
    """Kind of the rows."""
    label: str | None = None
    """Name in logs and metrics; null = the last part of the path or Hub id, or the kind. Labels must differ."""
    weight: Positive = 1.0
    """Share of the examples that are drawn from this dataset, relative to the weights of the others."""
    limit: PositiveInt | None = None
    """Maximum number of training rows, spread evenly over the source; null = all."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be read or encoded: it is an error, or is left out, counted and listed."""
    duplicates: Literal["report", "drop"] = "report"
    """Whether repeated rows, and training rows that are also held out, are counted only or also left out."""

    @property
    def log_name(self) -> str:
        """The name in logs and metrics."""
        return self.label or self.kind

    @property
    def held_out_share(self) -> float | None:
        """The share of the rows of one source that is held out; None if the validation split has its own source."""
        return None

    def fetch(self, cache: DataCache) -> None:
        """Download what is not cached. With several processes, rank 0 calls it before all others read.

        Raises:
            OSError: no source can be reached, or the cache cannot be written.
        """

    @abstractmethod
    def source(self, split: Split, cache: DataCache) -> RowSource:
        """The rows of a split, all of them.

        Raises:
            ValueError: there are none, or the files are not as they should be; the message names them.
            OSError: the rows are not here and cannot be reached.
        """

    @abstractmethod
    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """What turns the rows into examples.

        Raises:
            ValueError: the dataset cannot be encoded with these settings.
        """

    def held_out_encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `encoder`, of a source that has held-out rows alone."""
        return self.encoder(settings)

    def encoder_of(self, split: Split, settings: EncodeSettings) -> RowEncoder:
        """The encoder of the source of a split; of one source for both, it encodes both."""
        alone = split == "validation" and self.held_out_share is None
        return self.held_out_encoder(settings) if alone else self.encoder(settings)

    def rows(self, split: Split, cache: DataCache, limit: int | None = None) -> tuple[list[SourceRow], str]:
        """The rows of a split in memory, at most `limit` of them, spread evenly, and their place; for questions.

        Raises:
            ValueError: a row is invalid and may not be dropped; the message names file and row.
            OSError: the rows are not here and no source answers.
        """
        # here, because a recipe does not wait for the import of numpy
        from seektune.data.store.select import choose_rows

        source = self.source(split, cache)
        rows = self.good(source.read(0, source.count()), cache.note)
        least = min((each for each in (limit, self.limit if split == "train" else None) if each), default=None)
        share = self.held_out_share
        return choose_rows(rows, share, split == "validation", self.duplicates == "drop", least), source.title

    def good(self, found: Iterable[Item | BadRow], note: Callable[[str], None]) -> list[Item]:
        """What is not bad; a note lists what is left out.

        Raises:
            ValueError: something is, and `on_bad_row` does not drop it.
        """
        good = []
        bad = []
        for each in found:
            if not isinstance(each, BadRow):
                good.append(each)
            elif self.on_bad_row == "error":
                raise ValueError(str(each))
            else:
                bad.append(each)
        if bad:
            note(dropped(bad, len(bad)))
        return good

    def questions(self, cache: DataCache, limit: int | None = None, path: Path | None = None) -> list[Question]:
        """At most `limit` questions of the validation split, spread evenly, or of the file or folder `path`.

        Raises:
            ValueError, OSError: as with `source`; or a row is not a question.
        """
        raise NotImplementedError(f"{self.kind} has no questions")

    def card(self) -> DataCard:
        """The description for model cards."""
        return DataCard(self.kind, self.title, f"{self.title}.")


def spread_evenly(rows: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` rows, evenly spaced: a split may be sorted by source."""
    count = len(rows) if limit is None else min(limit, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
