"""Parses YAML into nodes that know their file and line; plain values only, so that a recipe cannot run code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml
from yaml.events import (
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from seektune.io.regular_file import open_regular
from seektune.io.text import printable
from seektune.paths import user_path

Scalar: TypeAlias = bool | int | float | str | None

MAX_FILE_SIZE = 256 * 1024
"""Bytes; nobody writes a larger file."""
MAX_DEPTH = 8
MAX_INTEGER = 2**63 - 1

_CONSTANTS: dict[str, Scalar] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?\d(_?\d){0,29}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,5})?", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_MARKERS = (StreamStartEvent, DocumentStartEvent, DocumentEndEvent, StreamEndEvent)


@dataclass(frozen=True)
class FileKind:
    """What errors say of a kind of YAML file."""

    name: str
    contents: str
    source: str
    """Where to get one."""


RECIPE = FileKind(
    "a recipe",
    "sections such as model:, data: and optimizer:",
    "`seektune init` lists the shipped recipes and copies one",
)


@dataclass(frozen=True)
class YamlNode:
    """A value of a recipe and where it is written."""

    value: "Scalar | list[YamlNode] | dict[str, YamlNode]"
    where: str
    """`file.yaml:12`, or the override as typed."""
    text: str = ""
    """A scalar's source text, before it was parsed as a number."""
    override: bool = False

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> "YamlNode | None":
        """The node at a path of keys, or None."""
        if not path:
            return self
        below = self._below(str(path[0]))
        return None if below is None else below.find(path[1:])

    def find_all(self, path: tuple[str, ...]) -> "Iterator[YamlNode]":
        """The nodes at a path of keys, in every section of a list of sections."""
        inside = self.value if isinstance(self.value, list) else []
        if not path:
            yield self
        elif (below := self._below(path[0])) is not None:
            yield from below.find_all(path[1:])
        for entry in inside if path else []:
            yield from entry.find_all(path)

    def put(self, path: tuple[str, ...], entry: "YamlNode") -> "YamlNode":
        """A copy with `entry` at the path; missing sections are created, entries of lists are not."""
        if not path:
            return entry
        if isinstance(self.value, list):
            index = int(path[0])
            changed = self.value[index].put(path[1:], entry)
            return replace(self, value=[*self.value[:index], changed, *self.value[index + 1 :]])
        inside = self.value if isinstance(self.value, dict) else {}
        below = inside[path[0]] if path[0] in inside else replace(entry, value={})
        return replace(self, value={**inside, path[0]: below.put(path[1:], entry)})

    def _below(self, key: str) -> "YamlNode | None":
        """The node of a key, or of an index of a list."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and key.isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None


def read_scalar(text: str) -> Scalar:
    """Parse a plain scalar as YAML 1.2 does: 1e-5 is a number, `yes` and infinities are strings."""
    lowered = text.lower()
    if lowered in _CONSTANTS:
        return _CONSTANTS[lowered]
    if _INTEGER.fullmatch(text):
        number = int(text)
        return number if abs(number) <= MAX_INTEGER else text
    if _FLOAT.fullmatch(text) and abs(float(text)) != float("inf"):
        return float(text)
    return text


def read_document(path: str | Path, kind: FileKind = RECIPE) -> YamlNode:
    """Read a recipe, or another YAML file that people write.

    Raises:
        ValueError: no such file, not text, not YAML, or more than plain values; the message names file and line.
        OSError: the file cannot be read.
    """
    given = Path(path)
    text = _read_text(given if given.exists() else user_path(str(path)), kind)
    entry = parse(text, str(path))
    if entry is None or entry.value is None:
        raise ValueError(f"{path} is empty; {kind.name} consists of {kind.contents}")
    if not isinstance(entry.value, dict):
        found = "list" if isinstance(entry.value, list) else "single value"
        raise ValueError(f"{path} holds a {found}; {kind.name} consists of {kind.contents}")
    return replace(entry, where=str(path))


def parse(text: str, origin: str, override: bool = False) -> YamlNode | None:
    """The single value of a YAML text, or None. `origin`, a file name or an override, begins error messages."""
    reader = _YamlReader(text, origin, override)
    return reader.document()


def _read_text(path: Path, kind: FileKind) -> str:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the YAML file of {kind.name}")
    if not path.exists() and not path.is_symlink():
        raise ValueError(f"{path} does not exist; {kind.source}")
    with open_regular(path) as file:
        content = file.read(MAX_FILE_SIZE + 1)
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"{path} is larger than {MAX_FILE_SIZE // 1024} KiB; it is not {kind.name}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: this is not UTF-8 text; {kind.name} is a YAML text file") from None


class _YamlReader:
    """Builds nodes from PyYAML's events, without its constructors; recursion depth is limited here."""

    def __init__(self, text: str, origin: str, override: bool) -> None:
        self.text = text
        self.origin = origin
        self.override = override
        self.depth = 0

    def document(self) -> YamlNode | None:
        try:
            self.events = self._events()
            first = next(self.events, None)
            entry = None if first is None else self._entry(first)
            extra = next(self.events, None)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line if mark else 0
            self._error(line, _explain(error.problem or "this is not YAML", self._source(line)))
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position)
            self._error(line, "this is not text")
        if extra is not None:
            self._error(_line(extra), "a file holds one YAML document; remove this second one")
        return entry

    def _events(self) -> Iterator[Event]:
        for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
            if not isinstance(event, _MARKERS):
                self._check(event)
                yield event

    def _check(self, event: Event) -> None:
        line = _line(event)
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self._error(line, "anchors (&) and aliases (*) are not supported; write the value out")
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) and event.tag is not None:
            self._error(line, "tags (!) are not supported; use plain values only")

    def _entry(self, event: Event) -> YamlNode:
        where = self._where(_line(event))
        if isinstance(event, ScalarEvent):
            bare = event.style is None
            value = read_scalar(event.value) if bare else event.value
            return YamlNode(value, where, event.value if bare else "", self.override)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._error(_line(event), f"brackets are nested more than {MAX_DEPTH} deep")
        inside = self._mapping() if isinstance(event, MappingStartEvent) else self._sequence()
        self.depth -= 1
        return YamlNode(inside, where, "", self.override)

    def _sequence(self) -> list[YamlNode]:
        entries = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            entries.append(self._entry(event))
        return entries

    def _mapping(self) -> dict[str, YamlNode]:
        entries: dict[str, YamlNode] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            line = _line(event)
            key = self._key(event)
            if key in entries:
                self._error(line, f"{key} is given twice (first on line {lines[key] + 1})")
            lines[key] = line
            entries[key] = replace(self._entry(next(self.events)), where=self._where(line))
        return entries

    def _key(self, event: Event) -> str:
        if not isinstance(event, ScalarEvent) or not _KEY.fullmatch(event.value):
            found = shorten(repr(event.value)) if isinstance(event, ScalarEvent) else "a list or mapping"
            advice = "keys are single words, and a section's keys are indented below its name"
            self._error(_line(event), f"{found} cannot be a key: {advice}")
        return event.value

    def _source(self, line: int) -> str:
        """The text of a line; empty after the last."""
        lines = self.text.splitlines()
        return lines[line] if line < len(lines) else ""

    def _where(self, line: int) -> str:
        return self.origin if self.override else f"{self.origin}:{line + 1}"

    def _error(self, line: int, message: str) -> NoReturn:
        raise ValueError(f"{self._where(line)}: {message}") from None


def _line(event: Event) -> int:
    assert event.start_mark is not None, "parsed events have a start mark"
    return event.start_mark.line


def shorten(text: str, most: int = 60) -> str:
    """The text on one line and of bounded length, for messages."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _explain(problem: str, source: str) -> str:
    if "'\\t'" in problem:
        indents = source.lstrip(" ").startswith("\t")
        return "a tab cannot indent YAML; use spaces" if indents else "YAML takes no tab here; use a space"
    return f"this is not YAML: {shorten(problem, 200)}"
