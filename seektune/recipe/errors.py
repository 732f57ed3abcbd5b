"""One line for whatever is wrong with a recipe: where it is written, what is wrong, and the nearest right thing."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seektune.recipe.document import YamlNode, shorten
from seektune.section import one_of, sections_of

Location: TypeAlias = tuple[str | int, ...]

_SENTENCES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a word or a path",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list such as [0.9, 0.95]",
    "list_type": "must be a list",
    "too_long": "must hold {max_length} values at most",
    "too_short": "must hold {min_length} values at least",
    "string_too_short": "must not be empty",
    "model_type": "is a section, whose keys are set one by one",
}
"""What pydantic's error types mean for a recipe; filled from the error's context."""


RENAMED = {"model.packed": "model.quantized"}
"""Keys by the names that they had before."""


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may hold, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in sections_of(field).values():
            yield from known_keys(section, f"{prefix}{name}.")


def find_section(location: Location, model: type[BaseModel]) -> tuple[Location, type[BaseModel]]:
    """The keys of a pydantic location, and the innermost section on the way to the last.

    Pydantic adds the name of the chosen section after a key that is a `OneOf`; here it is left out.
    """
    keys: list[str | int] = []
    section = model
    parts = iter(location)
    for part in parts:
        keys.append(part)
        field = section.model_fields.get(str(part))
        choices = {} if field is None else sections_of(field)
        name = "" if field is None or one_of(field) is None else str(next(parts, ""))
        section = choices.get(name, section)
    return tuple(keys), section


def complain(error: ValidationError, document: YamlNode, model: type[BaseModel]) -> str:
    """The most helpful of a validation's errors as one line; unknown keys first, for they explain missing ones."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    location, section = find_section(first["loc"], model)
    if first["type"] == "union_tag_invalid":
        first = _unknown_name(location, document, section)
        location = first["loc"]
    if first["type"] == "extra_forbidden":
        return f"{_where(document, location)}: {_unknown(location, section, list(known_keys(model)))}"
    if first["type"] == "missing":
        return f"{_where(document, location)}: {_dotted(location)} is missing"
    if first["type"] == "value_error":
        return blame(_disagreement(first, location), document, model, location)
    return f"{_where(document, location)}: {_dotted(location)} {_wrong_value(first, document.find(location))}"


def blame(sentence: str, document: YamlNode, model: type[BaseModel], location: Location = ()) -> str:
    """The sentence of a check, led by the place of a key that it names; an override is blamed before the file."""
    words = set(re.findall(r"[A-Za-z_][\w.]*\w", sentence))
    sections = [_dotted(location[:end]) + "." for end in range(1, len(location) + 1)]
    keys = [key for key in known_keys(model) if "." in key or (key in words and not location)]
    named = [key for key in keys if any(key.removeprefix(section) in words for section in ["", *sections])]
    written = [entry for key in named if (entry := document.find(tuple(key.split("."))))]
    written.sort(key=lambda entry: (not entry.override, isinstance(entry.value, dict)))
    where = written[0].where if written else _where(document, location)
    return f"{where}: {sentence}"


def _disagreement(error: ErrorDetails, location: Location) -> str:
    """A check's own sentence, with the key before it unless it names keys of the section in full."""
    sentence = error["msg"].removeprefix("Value error, ")
    return f"{_dotted(location)}: {sentence}" if location and f"{location[0]}." not in sentence else sentence


def _unknown_name(field: Location, document: YamlNode, section: type[BaseModel]) -> ErrorDetails:
    """The error of a `OneOf` whose name is unknown, as that of a key with a few valid values."""
    choice = one_of(section.model_fields[str(field[-1])])
    assert choice is not None, "only such a field has names"
    location = (*field, choice.key)
    entry = document.find(location)
    expected = " or ".join(repr(name) for name in choice.sections)
    found = None if entry is None else entry.plain()
    return {"type": "literal_error", "loc": location, "msg": "", "input": found, "ctx": {"expected": expected}}


def _unknown(location: Location, within: type[BaseModel], keys: list[str]) -> str:
    dotted = _dotted(location)
    if dotted in RENAMED:
        return f"{dotted} is now called {RENAMED[dotted]}"
    section, _, leaf = dotted.rpartition(".")
    kind = "this section" if section else "a recipe"
    siblings = list(within.model_fields)
    # the key itself may be one of another section that could stand here
    elsewhere = [key for key in keys if key.rpartition(".")[2] == leaf and key != dotted]
    near = [*elsewhere, *(f"{section}.{key}".lstrip(".") for key in get_close_matches(leaf, siblings, n=1))]
    if near:
        return f"{shorten(dotted)} is not a key of {kind}; did you mean {near[0]}?"
    return f"{shorten(dotted)} is not a key of {kind}; its keys are {', '.join(siblings)}"


def _wrong_value(error: ErrorDetails, entry: YamlNode | None) -> str:
    context: dict[str, Any] = error.get("ctx", {})
    known = error["type"] in _SENTENCES
    sentence = _SENTENCES[error["type"]].format(**context) if known else f"is not valid ({shorten(error['msg'], 120)})"
    found = f"{sentence}, not {_show(error['input'], entry)}"
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return found
    near = get_close_matches(error["input"], re.findall(r"'([^']*)'", str(context["expected"])), n=1)
    return f"{found}; did you mean {near[0]}?" if near else found


def _show(value: Any, entry: YamlNode | None) -> str:
    if isinstance(value, dict | list):
        return "a section of keys" if isinstance(value, dict) else "a list"
    if entry is not None and entry.text and not isinstance(value, str):
        return shorten(entry.text)
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    return shorten(repr(value))


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _where(document: YamlNode, location: Location) -> str:
    """Where the entry, or the innermost section around it, is written."""
    for end in range(len(location), 0, -1):
        entry = document.find(location[:end])
        if entry is not None:
            return entry.where
    return document.where
