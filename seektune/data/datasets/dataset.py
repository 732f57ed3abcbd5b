"""The interface of datasets: a recipe section that loads examples and questions, and describes itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from seektune.data.example import Example
from seektune.data.question import Question
from seektune.data.tokenizer import Tokenizer
from seektune.section import Section

Split = Literal["train", "validation"]
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
class LoadedSplit:
    """The examples of a split."""

    examples: list[Example]
    source: str
    """Description of their source."""


@dataclass(frozen=True)
class DataCard:
    """A dataset's description for model cards."""

    dataset: str
    """The name in recipes."""
    name: str
    """The display name."""
    text: str
    """Description of the training data, in Markdown."""
    hub_id: str | None = None
    """Id on the Hugging Face Hub; None for the user's own rows."""
    language: str | None = None
    """Language code on the Hub, such as `en`."""


class DataConfig(Section, ABC):
    """Base of datasets; each has its own section with the keys that it needs."""

    title: ClassVar[str]
    """The display name."""
    has_questions: ClassVar[bool] = False
    """Whether the dataset has `questions`; its name is then also an evaluation task."""
    dataset: str
    """Name of the dataset."""
    overlong: Literal["error", "drop"] = "error"
    """What happens to an example longer than `batch.length`: training refuses to start, or it is left out."""

    def fetch(self, cache: DataCache) -> None:
        """Download what is not cached. With several processes, rank 0 calls it before all load.

        Raises:
            OSError: no source can be reached, or the cache cannot be written.
        """

    @abstractmethod
    def load(self, split: Split, tokenizer: Tokenizer, cache: DataCache, limit: int | None = None) -> LoadedSplit:
        """The examples of a split, at most `limit` rows of it, spread evenly.

        Raises:
            ValueError: a row is invalid; the message names file and row.
            OSError: the rows are not here and no source answers.
        """

    def questions(self, cache: DataCache, limit: int | None = None, path: Path | None = None) -> list[Question]:
        """At most `limit` questions of the validation split, spread evenly, or of the file or folder `path`.

        Raises:
            ValueError, OSError: as with `load`.
        """
        raise NotImplementedError(f"{self.dataset} has no questions")

    def card(self) -> DataCard:
        """The description for model cards."""
        return DataCard(self.dataset, self.title, f"{self.title}.")


def spread_evenly(rows: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` rows, evenly spaced: a split may be sorted by source."""
    count = len(rows) if limit is None else min(limit, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
