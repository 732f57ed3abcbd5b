"""A message in the form of OpenAI's API: its validated fields, with errors that name the message."""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from seektune.data.chat_format.tokens import OPENINGS, TASKS
from seektune.io.strict_json import parse_json

ROLES = ("system", *OPENINGS, "tool")
SHOWN = 40
"""Maximum characters of an invalid value in its error."""
_KINDS = {str: "text", list: "a list", bool: "true or false"}


class Message:
    """A message and its index in the conversation.

    Every method raises ValueError, naming the message and what is wrong with it. `added` system messages before it are
    not the caller's, and are not counted where it is named.
    """

    def __init__(self, index: int, values: object, added: int = 0):
        self.index = index
        self._place = f"messages[{index - added}]" if index >= added else "what stands beside messages"
        if not isinstance(values, Mapping):
            raise self.error(f"must be an object with role and content, not {shown(values)}")
        self._values: Mapping[str, Any] = values
        role = values.get("role")
        if role not in ROLES:
            what = "has no role" if role is None else f"has the unknown role {shown(role)}"
            if role == "function":
                what += ", the older form of tool"
            raise self.error(f"{what}; the roles are {', '.join(ROLES)}")
        self.role = str(role)
        self._place += f" ({role})"

    def error(self, what: str) -> ValueError:
        """The error to raise."""
        return ValueError(f"{self._place} {what}")

    def field(self, key: str, kind: type) -> Any:
        """A field of the given type; None if it is missing."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, kind):
            raise self.error(f"has {key} {shown(value)}, which must be {_KINDS[kind]}")
        return value

    def content(self, needed: bool = True) -> str:
        """The text; the text parts of a list are joined by an empty line."""
        content = self._values.get("content")
        if content is None and not needed:
            return ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise self.error("has no content" if content is None else f"has content {shown(content)}, which is no text")
        return "\n\n".join(self._part(part) for part in content)

    def task(self) -> str | None:
        """The quick instruction that the message ends with, if any."""
        task: str | None = self.field("task", str)
        if task is not None and task not in TASKS:
            raise self.error(f"has the unknown task {shown(task)}; the tasks are {', '.join(TASKS)}")
        return task

    def tools(self) -> list[Mapping[str, Any]]:
        """The schemas of the message's tools."""
        tools = self.field("tools", list) or ()
        return [self._plain("a tool", self._function("tools", i, tool)) for i, tool in enumerate(tools)]

    def response_format(self) -> object:
        """The JSON schema that responses must follow, or None."""
        return self._plain("response_format", self._values.get("response_format") or None)

    def calls(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Name and arguments of each tool call."""
        if self._values.get("function_call"):
            raise self.error("has function_call, which is the older form of tool_calls; give it as tool_calls")
        return [self._call(i, call) for i, call in enumerate(self.field("tool_calls", list) or ())]

    def call_ids(self) -> tuple[str, ...]:
        """The id of each tool call, empty if it has none."""
        calls = self.field("tool_calls", list) or ()
        return tuple(str(call.get("id") or call["function"].get("id") or "") for call in calls)

    def _part(self, part: object) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(kind, str):
            raise self.error(f"has a part of content {shown(part)}, which must be an object with a type")
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if self.role == "tool" and kind != "text":
            return f"[Unsupported {kind}]"  # as the official encoder writes it
        raise self.error(f"has a part of content {shown(part)}, which is no text")

    def _call(self, i: int, call: object) -> tuple[str, Mapping[str, Any]]:
        function = self._function("tool_calls", i, call)
        name = function["name"]
        try:
            arguments = read_arguments(name, function.get("arguments"))
        except ValueError as error:
            raise self.error(str(error)) from None
        return name, self._plain(f"arguments of {name}", arguments)

    def _function(self, key: str, i: int, value: object) -> Mapping[str, Any]:
        function = _named_function(value)
        if function is None:
            raise self.error(f"has {key}[{i}] {shown(value)}, which must have a function with a name")
        return function

    def _plain(self, what: str, value: Any) -> Any:
        """A value that can be written as JSON."""
        if not _is_json(value):
            raise self.error(f"has {what} {shown(value)}, which JSON cannot hold")
        return value


def check_tools(tools: object) -> None:
    """Check tools that stand beside messages.

    Raises:
        ValueError: they are not a list of functions with names, or JSON cannot hold one.
    """
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list, not {shown(tools)}")
    for i, tool in enumerate(tools):
        function = _named_function(tool)
        if function is None:
            raise ValueError(f"tools[{i}] {shown(tool)} must have a function with a name")
        if not _is_json(function):
            raise ValueError(f"tools[{i}] {shown(tool)} holds what JSON cannot hold")


def read_arguments(name: str, arguments: object) -> Mapping[str, Any]:
    """The arguments of a call; none, null and an empty text are an empty object.

    Raises:
        ValueError: they are not JSON, or no object.
    """
    found = arguments
    if isinstance(arguments, str):
        try:
            found = parse_json(arguments) if arguments.strip() else None
        except ValueError:
            raise ValueError(f"calls {name} with arguments that are not JSON: {shown(arguments)}") from None
    if found is None:  # what clients send for a function without parameters
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(f"calls {name} with arguments {shown(found)}, which must be a JSON object")
    return found


def _named_function(value: object) -> Mapping[str, Any] | None:
    function = value.get("function") if isinstance(value, Mapping) else None
    return function if isinstance(function, Mapping) and isinstance(function.get("name"), str) else None


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = repr(_beginning(value, depth=3))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _beginning(value: object, depth: int) -> object:
    """As much of a value as an error may show; all of it could be megabytes, or nested too deeply to be written."""
    if isinstance(value, str):
        return value[:SHOWN]
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return ...
    if isinstance(value, dict):
        return {key: _beginning(item, depth - 1) for key, item in islice(value.items(), SHOWN)}
    return [_beginning(item, depth - 1) for item in islice(value, SHOWN)]
