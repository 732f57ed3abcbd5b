"""A conversation of a dataset, whatever the form of its row was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seektune.data.chat_format.encode import with_tools

ChatMessage = Mapping[str, Any]
"""A message in OpenAI's form; `train` says whether a response is taught, if the row says so."""


@dataclass(frozen=True)
class ConversationRow:
    """Messages, and what the row says about them."""

    messages: Sequence[ChatMessage]
    system: str | None = None
    """A system message that stands beside the messages."""
    tools: Sequence[Mapping[str, Any]] = ()
    thinking: str | None = None
    """The mode that the row asks for; None = the dataset's."""
    reasoning_effort: str | None = None
    """The effort that the row asks for; None = the dataset's."""

    def all_messages(self) -> Sequence[ChatMessage]:
        """The messages with what stands beside them, as the chat format reads them.

        Raises:
            ValueError: tools or messages are not lists.
        """
        messages = list(self.messages)
        if self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        return with_tools(messages, self.tools)
