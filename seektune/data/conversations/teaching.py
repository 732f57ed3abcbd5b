"""What of a conversation is taught, and its training texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_training_texts
from seektune.data.chat_format.encodings import find_encoding
from seektune.data.chat_format.pieces import ChatText
from seektune.data.chat_format.turns import read_turns
from seektune.data.conversations.checks import check_calls, check_control_tokens, check_responses
from seektune.data.conversations.conversation import ChatMessage, ConversationRow
from seektune.io.text import check_unicode

Teach = Literal["all", "last"]
ThinkingChoice = Literal["auto", "chat", "thinking"]
ControlTokens = Literal["error", "plain"]


@dataclass(frozen=True)
class Teaching:
    """Writes conversations as training texts."""

    encoding: EncodingName
    teach: Teach = "all"
    """Which responses are taught where a message does not say so: all, or the last one of the conversation."""
    thinking: ThinkingChoice = "auto"
    reasoning_effort: str | None = None
    control_tokens: ControlTokens = "error"
    """Whether a message may spell a control token, which is then read as plain characters."""

    def texts(self, conversation: ConversationRow) -> list[ChatText]:
        """The training texts of a conversation: usually one.

        Raises:
            ValueError: in one line, why it cannot be taught.
        """
        try:
            marked = self.marked(conversation)
            texts = render_training_texts(
                marked.all_messages(),
                (),
                marked.thinking or self.thinking,
                marked.reasoning_effort or self.reasoning_effort,
                self.encoding,
            )
        except ValueError:
            # an error of a message comes first, and counts messages as the row does: without what stands beside them
            read_turns(conversation.messages, find_encoding(self.encoding))
            raise
        self._check(marked.messages, texts)
        return texts

    def marked(self, conversation: ConversationRow) -> ConversationRow:
        """The conversation up to its last response, in which each response says whether it is taught.

        Raises:
            ValueError: it has no response.
        """
        messages = conversation.messages
        responses = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if not messages:
            raise ValueError("messages is empty")
        if not responses:
            raise ValueError("no message has the role assistant, so there is nothing to teach")
        last = responses[-1]
        marked = [
            {**message, "train": message.get("train", self.teach == "all" or i == last)} if i in responses else message
            for i, message in enumerate(messages[: last + 1])
        ]
        return replace(conversation, messages=marked)

    def _check(self, messages: Sequence[ChatMessage], texts: Sequence[ChatText]) -> None:
        """Check what the chat format itself allows."""
        check_calls(messages)
        check_responses(messages)
        if not texts:
            raise ValueError('no response is taught: each has "train": false')
        for text in texts:
            check_unicode(text.text)
            if self.control_tokens == "error":
                check_control_tokens(text, messages)
