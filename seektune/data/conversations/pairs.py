"""Rows of preference: one prompt, a response that is chosen and one that is rejected."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from seektune.data.conversations.columns import ColumnMap, list_of, named_columns, require
from seektune.data.conversations.conversation import ChatMessage, ConversationRow
from seektune.data.conversations.forms import conversation_of
from seektune.data.conversations.openai import read_messages
from seektune.data.conversations.prompts import prompt_messages, response_message, untaught
from seektune.data.conversations.sharegpt import read_sharegpt, speakers_to_messages

PROMPTS = {"prompt": prompt_messages, "messages": read_messages, "conversations": read_sharegpt}
"""Columns that hold what both responses follow, and their readers."""


def read_pair(values: Mapping[str, Any], columns: ColumnMap) -> tuple[ConversationRow, ConversationRow]:
    """The chosen and the rejected conversation of a row; only what follows their common beginning is taught.

    `chosen` and `rejected` are texts, messages, or whole conversations that begin alike.

    Raises:
        ValueError: in one line, what is wrong with the row.
    """
    row = named_columns(values, columns)
    require(row, ("chosen", "rejected"), "preference")
    chosen = _messages(row, "chosen")
    rejected = _messages(row, "rejected")
    prompt: list[ChatMessage] = []
    if _is_response(chosen) and _is_response(rejected):
        column = next((name for name in PROMPTS if name in row), "")
        if not column:
            raise ValueError(
                "no prompt; chosen and rejected are responses, which need a prompt or messages beside them"
            )
        prompt = PROMPTS[column](row)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
    if common == min(len(chosen), len(rejected)):
        raise ValueError("chosen and rejected do not differ")
    start = untaught([*prompt, *chosen[:common]])
    return (
        conversation_of(row, [*start, *chosen[common:]]),
        conversation_of(row, [*start, *rejected[common:]]),
    )


def _messages(row: Mapping[str, Any], name: str) -> list[ChatMessage]:
    value = row[name]
    if isinstance(value, Mapping):
        return speakers_to_messages([value], name)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [response_message(row, name)]
    messages = speakers_to_messages(list_of(row, name), name)
    if not messages:
        raise ValueError(f"{name} is empty")
    return messages


def _is_response(messages: Sequence[ChatMessage]) -> bool:
    return messages[0].get("role") == "assistant"
