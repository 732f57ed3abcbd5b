"""Rows of a prompt and a response: Alpaca's columns, and `prompt` with `completion`."""

from collections.abc import Mapping, Sequence
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.data.conversations.columns import list_of, needed_text, optional_text
from seektune.data.conversations.conversation import ChatMessage
from seektune.data.conversations.reasoning import with_reasoning
from seektune.data.conversations.sharegpt import speakers_to_messages


def read_alpaca(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages of `instruction`, `input` (optional), `output` and `history` (pairs of texts).

    Raises:
        ValueError: naming the column and what is wrong with it.
    """
    parts = [needed_text(row, "instruction"), optional_text(row, "input")]
    question = {"role": "user", "content": "\n\n".join(filter(None, parts))}
    return [*_history(row), question, response_message(row, "output")]


def read_prompt(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages of `prompt` and `completion`, each a text or a list of messages; only the completion is taught.

    Raises:
        ValueError: naming the column or message and what is wrong with it.
    """
    if isinstance(row["completion"], str):
        return [*prompt_messages(row), response_message(row, "completion")]
    return [*prompt_messages(row), *speakers_to_messages(list_of(row, "completion"), "completion")]


def prompt_messages(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages of `prompt`, of which none is taught.

    Raises:
        ValueError: naming the column or message and what is wrong with it.
    """
    if isinstance(row["prompt"], str):
        return [{"role": "user", "content": needed_text(row, "prompt")}]
    return untaught(speakers_to_messages(list_of(row, "prompt"), "prompt"))


def untaught(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages that are read only."""
    return [{**message, "train": False} for message in messages]


def response_message(row: Mapping[str, Any], name: str) -> ChatMessage:
    """The response whose text is in the column `name`, with the reasoning of the column `reasoning`.

    Raises:
        ValueError: naming the column and what is wrong with it.
    """
    message = {"role": "assistant", "content": needed_text(row, name)}
    reasoning = optional_text(row, "reasoning")
    return with_reasoning(message | ({"reasoning": reasoning} if reasoning else {}), name)


def _history(row: Mapping[str, Any]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for i, pair in enumerate(list_of(row, "history") if "history" in row else ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"history[{i}] must be two texts, a question and its answer, not {shown(pair)}")
        messages += [
            {"role": "user", "content": pair[0]},
            with_reasoning({"role": "assistant", "content": pair[1]}, f"history[{i}]"),
        ]
    return messages
