"""Writes and parses tool calls in DeepSeek-V4's markup (DSML).

<｜DSML｜tool_calls>
<｜DSML｜invoke name="NAME">
<｜DSML｜parameter name="KEY" string="true">text as it is</｜DSML｜parameter>
<｜DSML｜parameter name="KEY" string="false">any other JSON value</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜tool_calls>

The names of the tags depend on the encoding (`CallTags`).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from seektune.data.chat_format.encodings import V4_TAGS, CallTags
from seektune.data.chat_format.pieces import Pieces, from_format, from_message
from seektune.data.chat_format.tokens import DSML, as_json
from seektune.io.strict_json import parse_json

_LINE_END = ">\n"
# what holds markup in its turn is a call or a parameter that was not closed
_NAME = rf'name="((?:(?!{DSML}).)*?)"'
_CALL_HEAD = re.compile(rf"\s*{_NAME}>\n\n?", re.DOTALL)
"""Between `<invoke` and what follows; a call without parameters has one line break or two."""
_KEY_AND_VALUE = re.compile(rf' {_NAME} string="(true|false)">(.*?)<\n?', re.DOTALL)
"""Between `<parameter` and `/parameter`."""
SHOWN = 40
"""Maximum characters of invalid text in its error."""


def write_calls(calls: Sequence[tuple[str, Mapping[str, Any]]], tags: CallTags = V4_TAGS) -> Pieces:
    """Names and arguments of tool calls as one DSML block."""
    written = chain.from_iterable(_invoke(name, arguments, tags) for name, arguments in calls)
    return (*from_format(f"{tags.begin}>\n"), *written, *from_format(tags.end))


def read_calls(text: str, tags: CallTags = V4_TAGS) -> list[dict[str, Any]]:
    """The calls of one DSML block, in the form of OpenAI's API; `arguments` is JSON text.

    Raises:
        ValueError: the block does not follow the grammar, or a value is not JSON.
    """
    reader = _Reader(text.removeprefix(tags.begin), tags)
    calls = []
    while reader.line_until("a tool call", reader.invoke, tags.end) == reader.invoke:
        name, arguments = _read_call(reader)
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    reader.end()
    return calls


class _Reader:
    """Reads a text from mark to mark, as the official parser does.

    Every method raises ValueError where something else is found.
    """

    def __init__(self, text: str, tags: CallTags):
        self._text = text
        self._at = 0
        self._last = tags.end
        self.invoke = f"<{DSML}{tags.invoke}"
        self.invoke_end = f"</{DSML}{tags.invoke}"
        self.parameter = f"<{DSML}{tags.parameter}"
        self.parameter_end = f"/{DSML}{tags.parameter}"

    def until(self, *marks: str) -> tuple[str, str]:
        """The text before the first of the marks, and that mark; goes on behind it."""
        places = [(place, mark) for mark in marks if (place := self._text.find(mark, self._at)) >= 0]
        if not places:
            raise self._not_ended()
        place, mark = min(places)
        between = self._text[self._at : place]
        self._at = place + len(mark)
        return between, mark

    def line_until(self, what: str, *marks: str) -> str:
        """The first of the marks, which must begin a line."""
        between, mark = self.until(*marks)
        if between != _LINE_END:
            found = between.removeprefix(_LINE_END)
            raise ValueError(f"expected {what}, found {found[:SHOWN]!r}")
        return mark

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at < len(self._text):
            raise self._not_ended()

    def _not_ended(self) -> ValueError:
        return ValueError(f"tool calls must end with {self._last}, these end with {self._text[-SHOWN:]!r}")


def _read_call(reader: _Reader) -> tuple[str, str]:
    """Name and arguments of a call, whose beginning was read."""
    text, mark = reader.until(reader.parameter, reader.invoke_end)
    head = _CALL_HEAD.fullmatch(text)
    if head is None:
        raise ValueError(f"expected a name of a tool and its parameters, found {text[:SHOWN]!r}")
    name = head[1]
    values: dict[str, str] = {}
    while mark == reader.parameter:
        text, _ = reader.until(reader.parameter_end)
        parameter = _KEY_AND_VALUE.fullmatch(text)
        if parameter is None:
            raise ValueError(f"expected a parameter of tool call {name}, found {(reader.parameter + text)[:SHOWN]!r}")
        key, string, value = parameter.groups()
        if key in values:
            raise ValueError(f"tool call {name} gives the parameter {key} twice")
        # a value keeps the digits it was written with
        values[key] = as_json(value) if string == "true" else _checked_json(value, f"tool call {name}, {key}")
        mark = reader.line_until(f"a parameter of tool call {name}", reader.parameter, reader.invoke_end)
    return name, "{" + ", ".join(f"{as_json(key)}: {value}" for key, value in values.items()) + "}"


def _invoke(name: str, arguments: Mapping[str, Any], tags: CallTags) -> Pieces:
    parameters = chain.from_iterable(_parameter(key, value, tags) for key, value in arguments.items())
    return (
        *from_format(f'<{DSML}{tags.invoke} name="'),
        *from_message(name),
        *from_format('">\n'),
        *(parameters if arguments else from_format("\n")),
        *from_format(f"</{DSML}{tags.invoke}>\n"),
    )


def _parameter(key: str, value: Any, tags: CallTags) -> Pieces:
    string = isinstance(value, str)
    return (
        *from_format(f'<{DSML}{tags.parameter} name="'),
        *from_message(key),
        *from_format(f'" string="{as_json(string)}">'),
        *from_message(value if string else as_json(value)),
        *from_format(f"</{DSML}{tags.parameter}>\n"),
    )


def _checked_json(text: str, where: str) -> str:
    try:
        parse_json(text)
    except ValueError:
        raise ValueError(f'{where}: {text[:SHOWN]!r} is not JSON, and string="false" promises that') from None
    return text
