"""The kind `chat`: conversations in the forms that people have, as the checkpoint's chat format writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.columns import ColumnMap
from seektune.data.conversations.forms import read_conversation
from seektune.data.conversations.teaching import Teach, Teaching, ThinkingChoice
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import RowTexts, TextsEncoder, WrittenConfig


class TemplatedConfig(WrittenConfig):
    """Keys of the kinds whose rows are written in the chat format."""

    thinking: ThinkingChoice = "auto"
    """Mode of the responses: `auto` is thinking for those with reasoning and chat for others; a row may choose."""
    reasoning_effort: str | None = None
    """Effort that thinking responses are taught for; null = the encoding's default. A row may choose."""
    encoding: EncodingName | None = None
    """Encoding of the chat format; null = the checkpoint's."""

    def teaching(self, settings: EncodeSettings, teach: Teach) -> Teaching:
        """What writes the conversations.

        Raises:
            ValueError: the encoding lacks the effort.
        """
        encoding = self.encoding or settings.encoding
        if self.thinking != "chat":
            find_encoding(encoding).effort(self.reasoning_effort)
        return Teaching(encoding, teach, self.thinking, self.reasoning_effort, self.control_tokens)


class ChatConfig(TemplatedConfig):
    """Conversations: messages and tools, ShareGPT, Alpaca, or prompt and completion."""

    title: ClassVar[str] = "Conversations"
    several: ClassVar[str] = "a server drops old reasoning, so each question is taught after what it would read there"
    kind: Literal["chat"]
    """Kind of the rows."""
    teach: Teach = "all"
    """Responses that are taught: all, or the last of each row; `"train": false` or true of a message decides first."""

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`."""
        return TextsEncoder(settings, ChatTexts(self.teaching(settings, self.teach), self.columns), self.weight_column)


@dataclass(frozen=True)
class ChatTexts(RowTexts):
    """Writes rows of conversations."""

    teaching: Teaching
    columns: ColumnMap = field(default_factory=dict)

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`."""
        return self.teaching.texts(read_conversation(values, self.columns))
