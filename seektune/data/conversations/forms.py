"""Recognizes the form of a row by its columns and reads its conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.data.conversations.columns import KINDS, ColumnMap, column_names, list_of, named_columns, optional_text
from seektune.data.conversations.conversation import ChatMessage, ConversationRow
from seektune.data.conversations.openai import read_messages
from seektune.data.conversations.prompts import read_alpaca, read_prompt
from seektune.data.conversations.sharegpt import read_sharegpt

MODES_OF_ROWS = {"auto": "auto", "chat": "chat", "thinking": "thinking", True: "thinking", False: "chat"}
"""What the column `thinking` of a row may hold."""


@dataclass(frozen=True)
class RowForm:
    """A form that rows of conversations have."""

    columns: tuple[str, ...]
    """Columns that every row of this form has."""
    read: Callable[[Mapping[str, Any]], list[ChatMessage]]


FORMS = (
    RowForm(("messages",), read_messages),
    RowForm(("conversations",), read_sharegpt),
    RowForm(("instruction", "output"), read_alpaca),
    RowForm(("prompt", "completion"), read_prompt),
)
"""The forms, in the order in which they are tried."""


def read_conversation(values: Mapping[str, Any], columns: ColumnMap) -> ConversationRow:
    """The conversation of a row.

    Raises:
        ValueError: in one line, what is wrong with the row.
    """
    row = named_columns(values, columns)
    form = next((form for form in FORMS if all(name in row for name in form.columns)), None)
    if form is None:
        raise ValueError(_unknown_form(row))
    return conversation_of(row, form.read(row))


def conversation_of(row: Mapping[str, Any], messages: list[ChatMessage]) -> ConversationRow:
    """Messages, and what other columns of their row say about them.

    Raises:
        ValueError: a column is not as it should be.
    """
    return ConversationRow(
        messages,
        optional_text(row, "system"),
        list_of(row, "tools") if "tools" in row else (),
        _mode(row),
        optional_text(row, "reasoning_effort") or None,
    )


def _mode(row: Mapping[str, Any]) -> str | None:
    asked = row.get("thinking")
    if asked is None:
        return None
    if not isinstance(asked, str | bool) or asked not in MODES_OF_ROWS:
        raise ValueError(f"thinking must be auto, chat or thinking, not {shown(asked)}")
    return MODES_OF_ROWS[asked]


def _unknown_form(row: Mapping[str, Any]) -> str:
    if not row:
        return "the row is empty: it has no column that is not null"
    kind = next((kind for name, kind in KINDS.items() if name in row and kind != "chat"), None)
    if kind in ("text", "preference"):
        return f"the row has the columns {column_names(row)}; data.kind {kind} reads such rows"
    known = "; ".join(" and ".join(form.columns) for form in FORMS)
    return (
        f"the row has the columns {column_names(row)}, and a conversation needs {known}; "
        "name yours in data.columns, such as {prompt: question, completion: answer}"
    )
