"""Writes and parses tool calls in DeepSeek-V4's markup (DSML).

<｜DSML｜tool_calls>
<｜DSML｜invoke name="NAME">
<｜DSML｜parameter name="KEY" string="true">text as it is</｜DSML｜parameter>
<｜DSML｜parameter name="KEY" string="false">any other JSON value</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜tool_calls>
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from seektune.data.chat_format.tokens import DSML, as_json

CALLS_BEGIN = f"<{DSML}tool_calls"
CALLS_END = f"</{DSML}tool_calls>"
_CALLS = re.compile(rf"<{DSML}tool_calls>\n(.+)\n</{DSML}tool_calls>", re.DOTALL)
# what holds markup in its turn is a call or a parameter that was not closed
_NAME = rf'name="((?:(?!{DSML}).)*?)"'
_VALUE = rf"((?:(?!/{DSML}parameter).)*?)"
_INVOKE = re.compile(rf"<{DSML}invoke\s*{_NAME}>\n(.*?)\n</{DSML}invoke>", re.DOTALL)
_PARAMETER = re.compile(rf'<{DSML}parameter {_NAME} string="(true|false)">{_VALUE}</{DSML}parameter>', re.DOTALL)
SHOWN = 40
"""Maximum characters of invalid text in its error."""


def write_calls(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Names and arguments of tool calls as one DSML block."""
    written = "\n".join(_invoke(name, arguments) for name, arguments in calls)
    return f"<{DSML}tool_calls>\n{written}\n</{DSML}tool_calls>"


def read_calls(text: str) -> list[dict[str, Any]]:
    """The calls of one DSML block, in the form of OpenAI's API; `arguments` is JSON text.

    Raises:
        ValueError: the block does not follow the grammar, or a value is not JSON.
    """
    block = _CALLS.fullmatch(text)
    if block is None:
        raise ValueError(f"tool calls must end with </{DSML}tool_calls>, these end with {text[-SHOWN:]!r}")
    return [
        {"type": "function", "function": {"name": call[1], "arguments": _read_arguments(call[1], call[2])}}
        for call in _lines(_INVOKE, block[1], "a tool call")
    ]


def _invoke(name: str, arguments: Mapping[str, Any]) -> str:
    written = "\n".join(_parameter(key, value) for key, value in arguments.items())
    return f'<{DSML}invoke name="{name}">\n{written}\n</{DSML}invoke>'


def _parameter(key: str, value: Any) -> str:
    string = isinstance(value, str)
    text = value if string else as_json(value)
    return f'<{DSML}parameter name="{key}" string="{as_json(string)}">{text}</{DSML}parameter>'


def _read_arguments(call: str, text: str) -> str:
    values: dict[str, str] = {}
    for parameter in _lines(_PARAMETER, text, f"a parameter of tool call {call}"):
        key, string, value = parameter.groups()
        if key in values:
            raise ValueError(f"tool call {call} gives the parameter {key} twice")
        # a value keeps the digits it was written with
        values[key] = as_json(value) if string == "true" else _checked_json(value, f"tool call {call}, {key}")
    return "{" + ", ".join(f"{as_json(key)}: {value}" for key, value in values.items()) + "}"


def _checked_json(text: str, where: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # a number may have too many digits, too
        raise ValueError(f'{where}: {text[:SHOWN]!r} is not JSON, and string="false" promises that') from None
    return text


def _lines(pattern: re.Pattern[str], text: str, what: str) -> list[re.Match[str]]:
    """Every match of a text that consists of nothing but matches, with a line break between them."""
    found = list(pattern.finditer(text))
    understood = "\n".join(match[0] for match in found)
    if understood != text:
        place = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(understood, text, strict=False)))
        raise ValueError(f"expected {what}, found {text[place : place + SHOWN]!r}")
    return found
