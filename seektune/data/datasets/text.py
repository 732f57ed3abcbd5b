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

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class TextConfig(WrittenConfig):
    """Documents of plain text."""

    title: ClassVar[str] = "Text"
    kind: Literal["text"]
    """Kind of the rows."""
    fim_rate: Share = 0.0
    """Share of the documents that are rearranged to fill in the middle: prefix, suffix, middle; chosen by content."""
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
        return TextsEncoder(settings, DocumentTexts(self.columns, self.control_tokens, fill), self.weight_column)


@dataclass(frozen=True)
class DocumentTexts(RowTexts):
    """Writes rows of text."""

    columns: ColumnMap = field(default_factory=dict)
    control_tokens: ControlTokens = "error"
    fill: FillInMiddle | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        # what was prepared before there was `fill` keeps its name
        more = "" if self.fill is None else f", fill={self.fill!r}"
        return f"DocumentTexts(columns={self.columns!r}, control_tokens={self.control_tokens!r}{more})"

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`."""
        row = named_columns(values, self.columns)
        require(row, ("text",), "text")
        document = document_text(needed_text(row, "text"), self.control_tokens)
        return [document if self.fill is None else self.fill.rearranged(document, needed_text(row, "text"))]
