"""The grammar of one parameter of a tool call: its text as it is, or JSON, with the beginning of the closing tag.

A value is text where its schema allows any text, a length or fixed texts, and JSON otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from seektune.data.chat_format.message import shown
from seektune.generate.answer_grammar import MOST_CHARACTERS, json_rule, literal

ANNOTATIONS = frozenset({"$comment", "$schema", "default", "deprecated", "description", "examples", "title"})
"""Keywords that restrict no value."""
DEFINITIONS = ("$defs", "definitions")
FIXED = frozenset({"const", "enum", "type"})
LENGTHS = frozenset({"minLength", "maxLength", "type"})
NOT_TEXT = ["object", "array", "number", "boolean", "null"]
MOST_STEPS = 32
"""References and alternatives, one within the other, up to a parameter's type."""
MOST_VALUES = 256
"""Alternatives of one parameter."""
MOST_VISITS = 10_000
"""Schemas that are read for all parameters of a grammar; one that several references name is read for each."""
TEXT = literal('true">')
JSON = literal('false">')
END = literal("</")


class WorkBudget:
    """The work that is left for the parameters of one grammar, whose references can multiply a short schema."""

    def __init__(self) -> None:
        self._visits = MOST_VISITS
        self._characters = MOST_CHARACTERS

    def visit(self) -> None:
        """Count a schema.

        Raises:
            ValueError: there were too many.
        """
        self._visits -= 1
        if self._visits < 0:
            raise ValueError("a parameter has too many references or alternatives")

    def write(self, value: str) -> str:
        """Count the characters of an expression, and return it.

        Raises:
            ValueError: all of them are longer than a grammar may be.
        """
        self._characters -= len(value)
        if self._characters < 0:
            raise ValueError(f"the grammar has more than {MOST_CHARACTERS} characters, with $defs in each value")
        return value


def parameter_values(schema: object, definitions: Mapping[str, Any], budget: WorkBudget) -> list[str]:
    """Expressions for the values of a parameter, from its mark `true` (text) or `false` (JSON) on.

    Args:
        schema: of the parameter.
        definitions: `$defs` and `definitions` of the schema that it is a part of.
        budget: of the grammar.

    Raises:
        ValueError: it is not a schema, has too many alternatives, exceeds the budget, or a reference has no target.
    """
    values = map(budget.write, _values(schema, definitions, MOST_STEPS, budget))
    found = list(islice(values, MOST_VALUES + 1))
    if len(found) > MOST_VALUES:
        raise ValueError(f"a parameter has more than {MOST_VALUES} alternatives")
    return list(dict.fromkeys(found))


def _values(schema: object, definitions: Mapping[str, Any], steps: int, budget: WorkBudget) -> Iterator[str]:
    budget.visit()
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{shown(schema)} is not a schema")
    if steps == 0:
        raise ValueError(f"more than {MOST_STEPS} references or alternatives within each other")
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    keywords = schema.keys() - ANNOTATIONS
    for inner in _inner(schema, keywords, definitions):
        yield from _values(inner, definitions, steps - 1, budget)
    if not keywords:
        yield _text({})
        yield _json({"type": NOT_TEXT}, definitions)
    elif keywords <= FIXED and keywords != {"type"}:
        yield from _fixed(schema, definitions)
    elif keywords <= LENGTHS and schema.get("type") == "string" and _has_lengths(schema):
        yield _text(schema)
    elif not _inner(schema, keywords, definitions):
        yield _json(schema, definitions)


def _inner(schema: Mapping[str, Any], keywords: set[str], definitions: Mapping[str, Any]) -> Sequence[object]:
    """Schemas of which a value follows one; none if `schema` says itself what a value is."""
    types = schema.get("type")
    if keywords == {"$ref"}:
        return [_target(schema["$ref"], definitions)]
    if keywords == {"anyOf"} and isinstance(schema["anyOf"], list):
        if not schema["anyOf"]:
            raise ValueError("anyOf is empty")
        return schema["anyOf"]
    if isinstance(types, list) and "string" in types and len(types) > 1 and not keywords & FIXED - {"type"}:
        others = [each for each in types if each != "string"]
        return [{**schema, "type": "string"}, {**schema, "type": others}]
    return []


def _target(reference: object, definitions: Mapping[str, Any]) -> object:
    target: object = definitions
    for step in str(reference).removeprefix("#/").split("/"):
        if not isinstance(target, Mapping) or step not in target:
            raise ValueError(f"$ref {shown(reference)} has no target; it may name one of $defs")
        target = target[step]
    return target


def _fixed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """Fixed values: texts, and others as JSON."""
    options = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(options, list) or {"const", "enum"} <= schema.keys():
        yield _json(schema, definitions)
        return
    texts = [each for each in options if isinstance(each, str)]
    others = [each for each in options if not isinstance(each, str)]
    if texts and "string" in _types(schema):
        yield f"{TEXT} ({' | '.join(literal(f'{text}</') for text in texts)})"
    if others and _types(schema) != ["string"]:
        yield _json({"type": _types(schema), "enum": others}, definitions)


def _types(schema: Mapping[str, Any]) -> list[object]:
    """The types that a schema allows."""
    types = schema.get("type", ["string", *NOT_TEXT])
    return types if isinstance(types, list) else [types]


def _has_lengths(schema: Mapping[str, Any]) -> bool:
    return all(type(schema.get(key, 0)) is int and schema.get(key, 0) >= 0 for key in LENGTHS - {"type"})


def _text(schema: Mapping[str, Any]) -> str:
    least = schema.get("minLength", 0)
    most = schema.get("maxLength", "")
    return f"{TEXT} /(?s:.{{{least},{most}}})<\\//"


def _json(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    rule = json_rule(schema)
    return f"{JSON} {json_rule({**definitions, **schema}) if '$ref' in rule else rule} {END}"
