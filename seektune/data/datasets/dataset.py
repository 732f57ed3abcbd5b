"""What a dataset is: a section of the recipe that loads examples, and names itself for model cards and evaluations."""

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
"""In a source, between where rows came from and the folder of this machine that keeps them."""


@dataclass(frozen=True)
class DataCache:
    """Where fetched data are kept."""

    folder: Path
    note: Callable[[str], None]
    """Receives a line for each thing that is fetched."""


@dataclass(frozen=True)
class LoadedSplit:
    """The examples of a split."""

    examples: list[Example]
    source: str
    """Where they come from, in words."""


@dataclass(frozen=True)
class DataCard:
    """What model cards say of a dataset."""

    dataset: str
    """Its name in recipes."""
    name: str
    """What it is called."""
    text: str
    """What was trained on, in Markdown."""
    hub_id: str | None = None
    """Of the dataset on the Hugging Face Hub; None for rows of one's own."""
    language: str | None = None
    """Its code on the Hub, such as `en`."""


class DataConfig(Section, ABC):
    """Where the examples come from: each dataset derives a section of its own, with the keys that it needs."""

    title: ClassVar[str]
    """The dataset's name in sentences."""
    has_questions: ClassVar[bool] = False
    """Whether `questions` gives any; the dataset's name then also names an evaluation task."""
    dataset: str
    """Name of the dataset."""
    overlong: Literal["error", "drop"] = "error"
    """What happens to an example longer than `batch.length`: training refuses to start, or it is left out."""

    def fetch(self, cache: DataCache) -> None:
        """Fill the cache with what is not on this machine. Of several processes the first calls it before all load.

        Raises:
            OSError: no source answers, or the cache cannot be written.
        """

    @abstractmethod
    def load(self, split: Split, tokenizer: Tokenizer, cache: DataCache, limit: int | None = None) -> LoadedSplit:
        """The examples of a split, at most `limit` rows of it, spread evenly.

        Raises:
            ValueError: naming the file and row that is not as it should be.
            OSError: the rows are not here and no source answers.
        """

    def questions(self, cache: DataCache, limit: int | None = None, path: Path | None = None) -> list[Question]:
        """At most `limit` questions of the validation split, spread evenly, or of the file or folder `path`.

        Raises:
            ValueError, OSError: as with `load`.
        """
        raise NotImplementedError(f"{self.dataset} has no questions")

    def card(self) -> DataCard:
        """What model cards say of it."""
        return DataCard(self.dataset, self.title, f"{self.title}.")


def spread_evenly(rows: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` rows, taken at even distances: a split may be sorted by where its rows come from."""
    count = len(rows) if limit is None else min(limit, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
