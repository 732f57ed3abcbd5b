"""The kind `text`: documents, all of which is taught."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.columns import ColumnMap, named_columns, needed_text, require
from seektune.data.conversations.plain_text import document_text
from seektune.data.conversations.teaching import ControlTokens
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import RowTexts, TextsEncoder, WrittenConfig


class TextConfig(WrittenConfig):
    """Documents of plain text."""

    title: ClassVar[str] = "Text"
    kind: Literal["text"]
    """Kind of the rows."""

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: BOS, text, EOS."""
        return TextsEncoder(settings, DocumentTexts(self.columns, self.control_tokens), self.weight_column)


@dataclass(frozen=True)
class DocumentTexts(RowTexts):
    """Writes rows of text."""

    columns: ColumnMap = field(default_factory=dict)
    control_tokens: ControlTokens = "error"

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`."""
        row = named_columns(values, self.columns)
        require(row, ("text",), "text")
        return [document_text(needed_text(row, "text"), self.control_tokens)]
