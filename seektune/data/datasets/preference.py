"""The kind `preference`: a prompt with a chosen and a rejected response."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.columns import ColumnMap
from seektune.data.conversations.conversation import ConversationRow
from seektune.data.conversations.pairs import read_pair
from seektune.data.conversations.teaching import Teaching
from seektune.data.datasets.chat import TemplatedConfig
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import RowTexts, TextsEncoder


class PreferenceConfig(TemplatedConfig):
    """Preferences: a chosen and a rejected response to one prompt, for objectives that compare them."""

    title: ClassVar[str] = "Preferences"
    several: ClassVar[str] = "the chosen response, then the rejected one"
    paired: ClassVar[bool] = True
    kind: Literal["preference"]
    """Kind of the rows."""

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: each row has two examples, the chosen one first."""
        return TextsEncoder(settings, PreferenceTexts(self.teaching(settings, "all"), self.columns), self.weight_column)


@dataclass(frozen=True)
class PreferenceTexts(RowTexts):
    """Writes each row as two texts, the chosen one first."""

    teaching: Teaching
    columns: ColumnMap = field(default_factory=dict)

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`."""
        chosen, rejected = read_pair(values, self.columns)
        return [self._text(chosen, "chosen"), self._text(rejected, "rejected")]

    def _text(self, conversation: ConversationRow, name: str) -> ChatText:
        texts = self.teaching.texts(conversation)
        if len(texts) > 1:
            raise ValueError(f"{name} has several responses whose reasoning a server would drop; keep the last one")
        return texts[0]
