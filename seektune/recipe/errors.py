"""Turns validation errors into one line: the location, what is wrong, and the closest valid key or value."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seektune.io.console import counted
from seektune.recipe.document import RECIPE, FileKind, YamlNode, shorten
from seektune.recipe.hints import value_hint
from seektune.section import LIST, item_section, one_of, sections_of

Location: TypeAlias = tuple[str | int, ...]

_MESSAGES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string or a path",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_long": "must hold at most {most}",
    "too_short": "must hold at least {least}",
    "dict_type": "must be keys and values",
    "string_too_short": "must not be empty",
    "model_type": "is a section, whose keys are set one by one",
}
"""Messages for pydantic's error types, formatted with the error's context."""


RENAMED = {
    "model.packed": "model.quantized",
    "data.dataset": "data.kind",
    "data.overlong": "batch.overlong",
    "logging.tensorboard": "logging.to, a list such as [tensorboard]",
}
"""New names of renamed keys, by their old names."""


def known_keys(model: type[BaseModel], prefix: str = "", with_items: bool = True) -> Iterator[str]:
    """All dotted keys of a recipe, sections included, with or without those of the items of a list."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if not with_items and one_of(field) is None and item_section(field) is not None:
            continue
        for section in sections_of(field).values():
            yield from known_keys(section, f"{prefix}{name}.", with_items)


def find_section(location: Location, model: type[BaseModel]) -> tuple[Location, type[BaseModel]]:
    """The keys of a pydantic location, and the innermost section that contains it.

    After a key that is a `OneOf`, pydantic inserts the name of the chosen section, and before the index in a list of
    sections, `LIST`; they are removed here.
    """
    keys: list[str | int] = []
    section = model
    parts = iter(location)
    for part in parts:
        keys.append(part)
        field = section.model_fields.get(str(part))
        choices = {} if field is None else sections_of(field)
        name = "" if field is None or one_of(field) is None else str(next(parts, ""))
        if name == LIST:
            keys += [index for index in [next(parts, None)] if index is not None]
            name = str(next(parts, ""))
        section = choices.get(name, section)
    return tuple(keys), section


def first_error(error: ValidationError, document: YamlNode, model: type[BaseModel], kind: FileKind = RECIPE) -> str:
    """The first validation error as one line; unknown keys come first because they explain missing ones."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    location, section = find_section(first["loc"], model)
    if first["type"] == "union_tag_invalid":
        first = _unknown_name(location, document, section)
        location = first["loc"]
    if first["type"] == "extra_forbidden":
        names = list(known_keys(model, with_items=False))
        return f"{_where(document, location)}: {_unknown_key(location, section, names, kind)}"
    if first["type"] == "missing":
        if isinstance(location[-1], int):
            return f"{_where(document, location)}: {_dotted(location[:-1])} has only {counted(location[-1], 'value')}"
        return f"{_where(document, location)}: {_dotted(location)} is missing"
    if first["type"] == "value_error":
        return locate(_check_message(first, location), document, model, location)
    entry = document.find(location)
    told = f"{_dotted(location)} {_wrong_value(first, entry)}"
    hint = value_hint(first, entry, section.model_fields.get(str(location[-1])))
    return f"{_where(document, location)}: {told}{f'; {hint}' if hint else ''}"


def locate(message: str, document: YamlNode, model: type[BaseModel], location: Location = ()) -> str:
    """The message of a check, prefixed with the location of a key that it names; overrides come before the file."""
    words = set(re.findall(r"[A-Za-z_][\w.]*\w", message))
    sections = [_dotted(location[:end]) + "." for end in range(1, len(location) + 1)]
    keys = [key for key in known_keys(model) if "." in key or (key in words and not location)]
    named = [key for key in keys if any(key.removeprefix(section) in words for section in ["", *sections])]
    named += [word for word in words if _without_indices(word) in keys and word not in keys]
    written = [entry for key in named if (entry := document.find(tuple(key.split("."))))]
    written.sort(key=lambda entry: (not entry.override, isinstance(entry.value, dict)))
    where = written[0].where if written else _where(document, location)
    return f"{where}: {message}"


def _check_message(error: ErrorDetails, location: Location) -> str:
    """The message of a check, prefixed with the key unless it names keys of the section in full."""
    message = error["msg"].removeprefix("Value error, ")
    return f"{_dotted(location)}: {message}" if location and f"{location[0]}." not in message else message


def _unknown_name(field: Location, document: YamlNode, section: type[BaseModel]) -> ErrorDetails:
    """The error of a `OneOf` with an unknown name, as the error of a key with a fixed set of values."""
    name = next(part for part in reversed(field) if isinstance(part, str))
    choice = one_of(section.model_fields[name])
    assert choice is not None, "only a OneOf field has names"
    location = (*field, choice.key)
    entry = document.find(location)
    names = [repr(name) for name in choice.sections]
    expected = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    value = None if entry is None else entry.plain()
    return {"type": "literal_error", "loc": location, "msg": "", "input": value, "ctx": {"expected": expected}}


def _unknown_key(location: Location, within: type[BaseModel], keys: list[str], file: FileKind) -> str:
    dotted = _dotted(location)
    if _without_indices(dotted) in RENAMED:
        return f"{dotted} is now called {RENAMED[_without_indices(dotted)]}"
    section, _, leaf = dotted.rpartition(".")
    kind = "this section" if section else file.name
    siblings = list(within.model_fields)
    # the key itself may belong to another section of the same OneOf
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf and key != dotted]
    near = [*same_leaf, *(f"{section}.{key}".lstrip(".") for key in get_close_matches(leaf, siblings, n=1))]
    if near:
        return f"{shorten(dotted)} is not a key of {kind}; did you mean {near[0]}?"
    return f"{shorten(dotted)} is not a key of {kind}; its keys are {', '.join(siblings)}"


def _wrong_value(error: ErrorDetails, entry: YamlNode | None) -> str:
    context: dict[str, Any] = {**error.get("ctx", {})}
    context |= {
        "least": counted(context.get("min_length", 0), "value"),
        "most": counted(context.get("max_length", 0), "value"),
    }
    known = error["type"] in _MESSAGES
    expected = _MESSAGES[error["type"]].format(**context) if known else f"is not valid ({shorten(error['msg'], 120)})"
    return f"{expected}, not {_show(error['input'], entry)}"


def _show(value: Any, entry: YamlNode | None) -> str:
    if isinstance(value, dict | list):
        return "a section of keys" if isinstance(value, dict) else "a list" if value else "[]"
    if entry is not None and entry.text and not isinstance(value, str):
        return shorten(entry.text)
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    return shorten(repr(value))


def _without_indices(key: str) -> str:
    """A dotted key without the indices of entries of lists."""
    return re.sub(r"\.\d+", "", key)


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _where(document: YamlNode, location: Location) -> str:
    """The location of the entry, or of the innermost section around it."""
    for end in range(len(location), 0, -1):
        entry = document.find(location[:end])
        if entry is not None:
            return entry.where
    return document.where
