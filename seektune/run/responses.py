"""What a sampled response says: its parsed message, and its content and calls for rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.parse import parse_message
from seektune.data.chat_format.tokens import ASSISTANT, EOS, THINK, THINK_END
from seektune.data.tokenizer import Tokenizer
from seektune.rewards.answer_metrics import Answer, parsed_calls

MODES = {ASSISTANT + THINK_END: "chat", ASSISTANT + THINK: "thinking"}
"""By the two control tokens at the end of a prompt of the chat format."""


def mode_of(prompt: Sequence[int], tokenizer: Tokenizer) -> str | None:
    """The mode of the chat format in which a prompt asks for a response; None for other texts.

    Only the last two token ids are decoded, however long the conversation is.
    """
    return MODES.get(tokenizer.decode(prompt[-2:]))


def read_message(text: str, mode: str | None, encoding: EncodingName) -> Mapping[str, Any] | None:
    """The message of a whole response without its EOS; None for other texts and damaged ones."""
    if mode is None:
        return None
    try:
        return parse_message(text + EOS, mode, encoding)
    except ValueError:
        return None


def answer_of(text: str, mode: str | None, encoding: EncodingName) -> Answer:
    """The content and calls of a response, without reasoning; of other texts and of damaged ones, all of it."""
    message = read_message(text, mode, encoding)
    if message is None:
        return Answer(text.strip())
    return Answer(message["content"].strip(), parsed_calls(message["tool_calls"]))
