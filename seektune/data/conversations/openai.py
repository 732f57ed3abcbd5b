"""Messages in OpenAI's form, with what other tools write into it."""

from collections.abc import Mapping, Sequence
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.data.conversations.columns import list_of
from seektune.data.conversations.conversation import ChatMessage
from seektune.data.conversations.reasoning import with_reasoning

WEIGHTS = (0, 1)
"""Values of OpenAI's `weight` of a message: read only, and taught."""


def read_messages(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages of the column `messages`.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return to_messages(list_of(row, "messages"), "messages")


def to_messages(values: Sequence[Any], name: str) -> list[ChatMessage]:
    """Messages in the chat format's form; `name` is that of their column, for errors.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return [_message(value, f"{name}[{i}]") for i, value in enumerate(values)]


def _message(value: Any, place: str) -> ChatMessage:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} must be an object with role and content, not {shown(value)}")
    message: dict[str, Any] = {key: item for key, item in value.items() if item is not None}
    role = message.get("role")
    place = f"{place} ({role})" if isinstance(role, str) else place
    message = _with_train(message, place)
    if role == "function":  # OpenAI's name of the role before there were several calls
        return message | {"role": "tool"}
    if role != "assistant":
        return message
    if "function_call" in message:
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
    return with_reasoning(message, place)


def _with_train(message: dict[str, Any], place: str) -> dict[str, Any]:
    """The message with `train` true or false, if it says so in any way."""
    weight = message.pop("weight", None)
    train = message.pop("train", None)
    if weight is not None and weight not in WEIGHTS:
        raise ValueError(f"{place} has weight {shown(weight)}; it may be 0 (read only) or 1 (taught)")
    if train is not None and not isinstance(train, bool):
        raise ValueError(f"{place} has train {shown(train)}; it must be true or false")
    if train and message.get("role") != "assistant":
        raise ValueError(f"{place} has train true; only messages of the assistant can be taught")
    if train is None and weight is not None:
        train = bool(weight)
    return message if train is None else message | {"train": train}
