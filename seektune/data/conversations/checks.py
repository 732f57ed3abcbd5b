"""What training needs of a conversation beyond the chat format: questions, results of calls, no spelled control tokens.

Every function raises ValueError, naming the message and what is wrong with it.
"""

from collections.abc import Iterator, Sequence

from seektune.data.chat_format.message import shown
from seektune.data.chat_format.pieces import ChatText
from seektune.data.chat_format.tokens import CONTROL, as_json
from seektune.data.conversations.conversation import ChatMessage

ASKING = ("user", "developer", "tool")
"""Roles that a response answers."""
BESIDE = ("system", "latest_reminder")
"""Roles that may stand between a question or call and what follows it."""


def check_responses(messages: Sequence[ChatMessage]) -> None:
    """Check that every taught response answers something and is not empty."""
    asked = ""
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and message["train"]:
            if asked not in ASKING:
                found = f"follows the role {asked}" if asked else "is the first message"
                raise ValueError(
                    f"{_place(messages, i)} {found}, but a response follows a question or a result; "
                    'correct the row, or give the message "train": false'
                )
            if not any(message.get(key) for key in ("content", "reasoning_content", "tool_calls")):
                raise ValueError(f"{_place(messages, i)} is empty: it has no content, reasoning or tool calls")
        if message["role"] not in BESIDE:
            asked = message["role"]


def check_calls(messages: Sequence[ChatMessage]) -> None:
    """Check that every call but those of the last message has its result, and every result its call."""
    waiting: list[str] = []
    caller = 0
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            _take(waiting, message.get("tool_call_id") or "", _place(messages, i))
        elif message["role"] not in BESIDE:
            if waiting:
                name = next(iter(_names(messages[caller])))
                raise ValueError(f"{_place(messages, caller)} calls {name}, and not every call has a result")
            caller = i
            waiting = [str(call.get("id") or "") for call in message.get("tool_calls") or ()]


def _take(waiting: list[str], call_id: str, place: str) -> None:
    """Remove the call that a result answers: that of its id, or the first one where ids are missing."""
    if not waiting:
        raise ValueError(f"{place} is a result, and no call waits for one")
    if call_id and any(waiting):
        if call_id not in waiting:
            raise ValueError(f"{place} has tool_call_id {shown(call_id)}, which no waiting call has")
        waiting.remove(call_id)
    else:
        waiting.pop(0)


def check_control_tokens(text: ChatText, messages: Sequence[ChatMessage]) -> None:
    """Check that no message spells a control token."""
    plain = (piece.text for piece in text.pieces if not piece.control)
    spelled = next((found[0] for part in plain if (found := CONTROL.search(part))), None)
    if spelled is not None:
        places = (_place(messages, i) for i, message in enumerate(messages) if spelled in as_json(message))
        raise ValueError(spells(next(places, "the row"), spelled))


def spells(where: str, token: str) -> str:
    """The reason against a text that spells a control token."""
    return (
        f"{where} spells the control token {token}, which only the chat format writes; "
        "remove it, or set data.control_tokens=plain to read it as plain characters"
    )


def _place(messages: Sequence[ChatMessage], i: int) -> str:
    return f"messages[{i}] ({messages[i]['role']})"


def _names(message: ChatMessage) -> Iterator[str]:
    return (call["function"]["name"] for call in message.get("tool_calls") or ())
