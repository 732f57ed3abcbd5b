"""Columns of a row by the names that readers know, and values that are JSON as text."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from seektune.data.chat_format.message import SHOWN, shown
from seektune.io.console import listed
from seektune.io.strict_json import parse_json

ColumnName = Literal[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "system",
    "tools",
    "reasoning",
    "thinking",
    "reasoning_effort",
]
"""Columns that have a meaning; a recipe maps other names to these."""
KINDS: Mapping[str, str] = {
    "messages": "chat",
    "conversations": "chat",
    "instruction": "chat",
    "chosen": "preference",
    "completion": "prompt_completion",
    "text": "text",
}
"""The kind of dataset that a column belongs to, for hints."""
ColumnMap = Mapping[ColumnName, str | None]
"""The dataset's own name of a column; None = the column is not read."""


def named_columns(values: Mapping[str, Any], columns: ColumnMap) -> dict[str, Any]:
    """The columns of a row by the names that readers know; null columns are left out.

    A column that is mapped is known by its new name only.
    """
    mapped = {*columns, *columns.values()}
    row = {name: value for name, value in values.items() if name not in mapped}
    row |= {name: values.get(own) for name, own in columns.items() if own is not None}
    return {name: value for name, value in row.items() if value is not None}


def require(row: Mapping[str, Any], names: Sequence[ColumnName], kind: str) -> None:
    """Check that a row has the columns of its kind.

    Raises:
        ValueError: one is missing.
    """
    missing = next((name for name in names if name not in row), None)
    if missing is not None:
        other = next((other for name, other in KINDS.items() if name in row and other != kind), None)
        hint = (
            f"data.kind {other} reads such rows"
            if other
            else f"name yours in data.columns, such as {{{missing}: NAME}}"
        )
        raise ValueError(f"no {missing}; the row has the columns {column_names(row)}; {hint}")


def needed_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a column.

    Raises:
        ValueError: it is not text, or is empty.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {shown(value)}")
    if not value:
        raise ValueError(f"{name} is empty")
    return value


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a column; empty if it is missing.

    Raises:
        ValueError: it is not text.
    """
    value = row.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {shown(value)}")
    return value


def list_of(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The list in a column, which may be written as JSON text.

    Raises:
        ValueError: it is not a list.
    """
    value = row.get(name)
    if isinstance(value, str):
        value = _json_list(name, value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, not {shown(value)}")
    return value


def column_names(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for an error."""
    return listed([shorten(str(name)) for name in sorted(row, key=str)]) or "none"


def shorten(name: str) -> str:
    """A name as an error shows it."""
    return name if len(name) <= SHOWN else f"{name[:SHOWN]}..."


def _json_list(name: str, text: str) -> Any:
    try:
        return parse_json(text) if text.strip() else []
    except ValueError:
        raise ValueError(f"{name} is text that is not a JSON list: {shown(text)}") from None
