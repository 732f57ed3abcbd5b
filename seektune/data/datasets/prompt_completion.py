"""The kind `prompt_completion`: texts without the chat format, of which the completion is taught."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from seektune.data.chat_format.pieces import ChatText
from seektune.data.conversations.columns import (
    ColumnMap,
    named_columns,
    needed_text,
    optional_text,
    require,
)
from seektune.data.conversations.plain_text import completion_text
from seektune.data.conversations.teaching import ControlTokens
from seektune.data.datasets.dataset import EncodeSettings, RowEncoder
from seektune.data.datasets.row_texts import RowTexts, TextsEncoder, WrittenConfig


class PromptCompletionConfig(WrittenConfig):
    """Prompts with completions as plain text; for the chat format, `chat` reads the same rows."""

    title: ClassVar[str] = "Prompts and completions"
    kind: Literal["prompt_completion"]
    """Kind of the rows."""

    def encoder(self, settings: EncodeSettings) -> RowEncoder:
        """As `DataConfig.encoder`: BOS, prompt, completion, EOS; the prompt's ids are those that a server reads."""
        return TextsEncoder(settings, PromptCompletionTexts(self.columns, self.control_tokens), self.weight_column)


@dataclass(frozen=True)
class PromptCompletionTexts(RowTexts):
    """Writes rows of prompts and completions."""

    columns: ColumnMap = field(default_factory=dict)
    control_tokens: ControlTokens = "error"

    def texts(self, values: Mapping[str, Any]) -> list[ChatText]:
        """As `RowTexts.texts`."""
        row = named_columns(values, self.columns)
        require(row, ("prompt", "completion"), "prompt_completion")
        for name in ("prompt", "completion"):
            if isinstance(row[name], list):
                raise ValueError(f"{name} is a list of messages; data.kind chat reads such rows")
        return [completion_text(optional_text(row, "prompt"), needed_text(row, "completion"), self.control_tokens)]
