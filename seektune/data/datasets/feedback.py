"""The kind `feedback`: single responses, each labelled as good or bad, for KTO."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from seektune.data.chat_format.message import shown
from seektune.data.datasets.chat import ChatTexts, TemplatedConfig
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import TextsEncoder
from seektune.data.example import Example
from seektune.data.sources.row import BadRow, SourceRow

LABELS: dict[object, float] = {True: 1.0, False: -1.0, "true": 1.0, "false": -1.0}
"""Weights of responses by their label; cells of .csv are text. 1 and 0 equal true and false."""


class FeedbackConfig(TemplatedConfig):
    """Responses that are labelled as good or bad, without a counterpart; for the objective `kto`."""

    title: ClassVar[str] = "Feedback"
    labelled: ClassVar[bool] = True
    kind: Literal["feedback"]
    """Kind of the rows."""
    label_column: str = "label"
    """Column that is true if the response is good, and false if it is bad."""

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: a bad response has the weight -1."""
        return FeedbackEncoder(
            TextsEncoder(settings, ChatTexts(self.teaching(settings, "last"), self.columns)), self.label_column
        )


@dataclass(frozen=True)
class FeedbackEncoder(RowEncoder):
    """Encodes the last response of each row, and gives it the sign of its label."""

    texts: TextsEncoder
    column: str

    @property
    def identity(self) -> str:  # type: ignore[override]
        """As `RowEncoder.identity`."""
        return f"feedback 1 {self.column!r} {self.texts.identity}"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        """As `RowEncoder.encode`."""
        return [self._signed(*each) for each in zip(rows, self.texts.encode(rows), strict=True)]

    def _signed(self, row: SourceRow, found: list[Example] | BadRow) -> list[Example] | BadRow:
        label = row.values.get(self.column)
        weight = LABELS.get(label.lower() if isinstance(label, str) else label) if _is_cell(label) else None
        if isinstance(found, BadRow):
            return found
        if weight is None:
            return BadRow(row.place, f"{self.column} is {shown(label)}, which must be true or false")
        return [replace(example, weight=weight) for example in found]


def _is_cell(value: object) -> bool:
    return isinstance(value, bool | int | str)
