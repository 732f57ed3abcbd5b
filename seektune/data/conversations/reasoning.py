"""Reasoning of a response, which datasets keep under several keys or inside the content."""

from collections.abc import Mapping
from typing import Any

from seektune.data.chat_format.tokens import THINK, THINK_END

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold its reasoning; the first is the chat format's."""


def with_reasoning(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A message of the assistant with its reasoning under `reasoning_content` only.

    Line ends around reasoning in `<think>...</think>` are left out, as the chat format has none.

    Raises:
        ValueError: it has reasoning in two places, or a `<think>` that does not end.
    """
    rest = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    found = {key: message[key] for key in REASONING_KEYS if message.get(key)}
    content = rest.get("content")
    if isinstance(content, str) and content.lstrip().startswith(THINK):
        found[THINK], rest["content"] = _split(content, place)
    different = list({repr(value): key for key, value in found.items()}.values())
    if len(different) > 1:
        raise ValueError(f"{place} has reasoning in {different[0]} and in {different[1]}; keep one")
    return rest | ({"reasoning_content": next(iter(found.values()))} if found else {})


def _split(content: str, place: str) -> tuple[str, str]:
    """Reasoning and answer."""
    reasoning, end, answer = content.lstrip().removeprefix(THINK).partition(THINK_END)
    if not end:
        raise ValueError(f"{place} begins with {THINK}, which never ends")
    return reasoning.strip("\n"), answer.lstrip("\n")
