"""Hints for values of the wrong type, made from the value that was written."""

import re
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from seektune.recipe.document import YamlNode, read_scalar, shorten

NUMBERS = ("int_type", "float_type", "int_from_float")
LISTS = ("tuple_type", "list_type")
SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false", "1": "true", "0": "false"}
"""What YAML 1.1 and other programs write for true and false."""


NONE_WORDS = ("none", "nil", "undefined")
"""What other languages and libraries call null."""


def value_hint(error: ErrorDetails, entry: YamlNode | None, field: FieldInfo | None) -> str:
    """What to write instead of a value; empty where that cannot be told.

    Args:
        error: pydantic's.
        entry: the value, if it is written.
        field: the key's; None for a part of a list.
    """
    value = error["input"]
    kind = error["type"]
    if kind in LISTS and str(value).lower() in NONE_WORDS:
        return "write [] for none"
    if kind in LISTS and isinstance(value, str | int | float):
        return f"write {_as_list(shorten(str(value)), field)}"
    if kind == "dict_type" and entry is not None and entry.override:
        return f"set them one by one: {entry.where.partition('=')[0]}.KEY=VALUE"
    if kind == "literal_error" and isinstance(value, str):
        near = get_close_matches(value, re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected"))), n=1)
        return f"did you mean {near[0]}?" if near else ""
    if kind == "bool_type" and str(value).lower() in SWITCHES:
        return f"write {SWITCHES[str(value).lower()]}"
    if kind in (*NUMBERS, "bool_type") and isinstance(value, str):
        quoted = entry is not None and not entry.text
        return f"write {value} without quotes" if quoted and not isinstance(read_scalar(value), str) else ""
    if kind in NUMBERS and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return ""


def _as_list(text: str, field: FieldInfo | None) -> str:
    """The list that was meant: of the value itself, or of more values where the key's default has them."""
    default: Any = None if field is None else field.default
    if isinstance(default, tuple) and len(default) > 1 and "," not in text:
        return f"a list such as [{', '.join(map(str, default))}]"
    return f"[{text}]"
