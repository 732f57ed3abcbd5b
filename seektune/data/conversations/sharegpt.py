"""ShareGPT's form: a list of objects with `from` and `value`."""

from collections.abc import Mapping
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.data.conversations.columns import list_of
from seektune.data.conversations.conversation import ChatMessage
from seektune.data.conversations.openai import to_messages
from seektune.io.strict_json import parse_json

ROLES_OF_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "developer": "developer",
    "latest_reminder": "latest_reminder",
}
"""The role of each value of `from`."""
CALLERS = ("function_call", "tool_call")
"""Values of `from` whose `value` is one tool call or a list of them as JSON: `name` and `arguments`."""


def read_sharegpt(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The messages of the column `conversations`, which may also be in OpenAI's form.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return speakers_to_messages(list_of(row, "conversations"), "conversations")


def speakers_to_messages(values: Any, name: str) -> list[ChatMessage]:
    """Messages of a list of objects with `from` and `value`; `name` is that of their column.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    return to_messages([_converted(value, f"{name}[{i}]") for i, value in enumerate(values)], name)


def _converted(value: Any, place: str) -> Any:
    """A message in OpenAI's form, if it is in ShareGPT's."""
    if not isinstance(value, Mapping) or "from" not in value:
        return value
    speaker = value["from"]
    if not isinstance(speaker, str) or speaker not in ROLES_OF_SPEAKERS:
        raise ValueError(f"{place} has from {shown(speaker)}; it may be {', '.join(ROLES_OF_SPEAKERS)}")
    rest = {key: item for key, item in value.items() if key not in ("from", "value")}
    message = rest | {"role": ROLES_OF_SPEAKERS[speaker], "content": value.get("value")}
    if speaker not in CALLERS:
        return message
    return message | {"content": None, "tool_calls": _calls(value.get("value"), place)}


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    try:
        calls = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{place} has a call that is not JSON: {shown(value)}") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError(f"{place} has a call {shown(value)}, which must be an object with name and arguments")
    return [{"type": "function", "function": call} for call in calls]
