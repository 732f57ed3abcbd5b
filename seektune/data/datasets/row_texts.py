"""The encoder of datasets whose rows become texts: many rows are tokenized together."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from seektune.data.chat_format.message import shown
from seektune.data.chat_format.pieces import ChatText, encode_texts
from seektune.data.conversations.columns import ColumnName
from seektune.data.conversations.teaching import ControlTokens
from seektune.data.datasets.dataset import DataCard, EncodeSettings, RowEncoder
from seektune.data.datasets.rows import RowsConfig
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow
from seektune.io.text import on_one_line

VERSION = 1
"""Changes with every change of what these encoders write."""
LARGEST_WEIGHT = 1e6
LONGEST_REASON = 350
"""Characters; names in a row may have a megabyte."""


class WrittenConfig(RowsConfig):
    """Keys of the kinds whose rows become texts."""

    columns: dict[ColumnName, str | None] = Field(default_factory=dict)
    """Your names of columns, such as `{prompt: question, completion: answer}`; null = the column is not read."""
    weight_column: str | None = None
    """Column with the weight of a row in the loss, a number of 0 or more; null = all rows weigh 1."""
    control_tokens: ControlTokens = "error"
    """Whether a text that spells a control token is a bad row, or is read as plain characters."""

    def card(self) -> DataCard:
        """As `DataConfig.card`."""
        place = "" if self.hub is None else f" of [{self.hub}](https://huggingface.co/datasets/{self.hub})"
        return DataCard(self.kind, self.title, f"{self.title}{place}.", self.hub)


class RowTexts(ABC):
    """Writes rows as texts. Picklable; its `repr` names everything that changes the texts."""

    @abstractmethod
    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """The texts of a row with these columns, usually one and never none.

        Raises:
            ValueError: in one line, what is wrong with the row.
        """

    def texts_of_row(self, row: SourceRow) -> list[ChatText]:
        """As `texts`; for writers to which it matters which row it is."""
        return self.texts(row.values)


@dataclass(frozen=True)
class TextsEncoder(RowEncoder):
    """Tokenizes the texts of rows."""

    settings: EncodeSettings
    writer: RowTexts
    weight_column: str | None = None

    @property
    def identity(self) -> str:  # type: ignore[override]
        """As `RowEncoder.identity`."""
        return f"{self.writer!r} {VERSION}, vocabulary {self.settings.vocab_size}, weights {self.weight_column!r}"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        written = [self._written(row) for row in rows]
        texts = [text for each in written if not isinstance(each, BadRow) for text in each.texts]
        encoded = iter(encode_texts(texts, self.settings.tokenizer))
        return [
            each if isinstance(each, BadRow) else [Example(*next(encoded), name, each.weight) for name in each.names]
            for each in written
        ]

    def _written(self, row: SourceRow) -> "WeightedTexts | BadRow":
        texts = texts_of(self.writer, row)
        weight = weight_of(row, self.weight_column)
        if isinstance(texts, BadRow):
            return texts
        return weight if isinstance(weight, BadRow) else WeightedTexts(texts, _names(row, len(texts)), weight)


@dataclass(frozen=True)
class WeightedTexts:
    """What a row becomes."""

    texts: Sequence[ChatText]
    names: Sequence[str]
    """Of the examples, for messages."""
    weight: float


def weight_of(row: SourceRow, column: str | None) -> float | BadRow:
    """The weight of a row in the loss, or why it has none."""
    if column is None:
        return 1.0
    value = row.values.get(column)
    try:  # cells of .csv are text
        weight = math.nan if isinstance(value, bool | None) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= LARGEST_WEIGHT:
        return BadRow(row.place, f"{on_one_line(column)[:80]} is {shown(value)}, which must be a number of 0 or more")
    return weight


def texts_of(writer: RowTexts, row: SourceRow) -> list[ChatText] | BadRow:
    """The texts of a row, or why it has none."""
    try:
        return writer.texts_of_row(row)
    except ValueError as error:
        reason = on_one_line(str(error)[: LONGEST_REASON + 1])
        return BadRow(row.place, reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}...")
    except RecursionError:
        return BadRow(row.place, "a value is nested too deeply")


def _names(row: SourceRow, count: int) -> list[str]:
    if count == 1:
        return [row.place]
    return [f"{row.place}, example {number} of {count}" for number in range(1, count + 1)]
