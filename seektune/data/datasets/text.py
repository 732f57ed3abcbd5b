"""The kind `text`: documents, all of which is taught."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.columns import ColumnMap, named_columns, needed_text, require
from seektune.data.conversations.fill_in_middle import FillInMiddle
from seektune.data.conversations.plain_text import document_text
from seektune.data.conversations.teaching import ControlTokens
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import RowTexts, TextsEncoder, WrittenConfig
from seektune.data.sources.row import SourceRow

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class TextConfig(WrittenConfig):
    """Documents of plain text."""

    title: ClassVar[str] = "Text"
    kind: Literal["text"]
    """Kind of the rows."""
    fim_rate: Share = 0.0
    """Share of the training documents that are rearranged to fill in the middle: prefix, suffix, middle; by content."""
    fim_spm_share: Share = 0.0
    """Share of these that have the suffix first: suffix, prefix, middle."""
    fim_seed: NonNegativeInt = 0
    """Another seed chooses other documents and cuts them elsewhere."""

    @model_validator(mode="after")
    def _some_are_rearranged(self) -> Self:
        for key, value in (("fim_spm_share", self.fim_spm_share), ("fim_seed", self.fim_seed)):
            if value and not self.fim_rate:
                raise ValueError(f"{key} needs a fim_rate above 0; set it to 0")
        return self

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: BOS, text, EOS."""
        fill = FillInMiddle(self.fim_rate, self.fim_spm_share, self.fim_seed) if self.fim_rate else None
        writer = DocumentTexts(self.columns, self.control_tokens, fill, self.held_out_share if fill else None)
        return TextsEncoder(settings, writer, self.weight_column)

    def held_out_encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.held_out_encoder`: none is rearranged."""
        return TextsEncoder(settings, DocumentTexts(self.columns, self.control_tokens), self.weight_column)


@dataclass(frozen=True)
class DocumentTexts(RowTexts):
    """Writes rows of text."""

    columns: ColumnMap = field(default_factory=dict)
    control_tokens: ControlTokens = "error"
    fill: FillInMiddle | None = None
    """Rearranges training rows."""
    held_out_share: float | None = None
    """Share of the rows that are held out, which stay as they are."""

    def __repr__(self) -> str:
        # what was prepared before there were `fill` and `held_out_share` keeps its name
        fill = "" if self.fill is None else f", fill={self.fill!r}"
        share = "" if self.held_out_share is None else f", held_out_share={self.held_out_share!r}"
        return f"DocumentTexts(columns={self.columns!r}, control_tokens={self.control_tokens!r}{fill}{share})"

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`, not rearranged."""
        return [document_text(self._text(values), self.control_tokens)]

    def texts_of_row(self, row: SourceRow) -> list[ChatText]:
        """As `RowTexts.texts_of_row`, rearranged unless the row is held out."""
        documents = self.texts(row.values)
        if self.fill is None or row.is_held_out(self.held_out_share):
            return documents
        text = self._text(row.values)
        return [self.fill.rearranged(document, text) for document in documents]

    def _text(self, values: Mapping[str, Any]) -> str:
        row = named_columns(values, self.columns)
        require(row, ("text",), "text")
        return needed_text(row, "text")
