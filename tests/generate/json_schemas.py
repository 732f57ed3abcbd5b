"""JSON schemas in the shapes that public collections have: configurations, API bodies, events, records, trees."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
KEYS = ("id", "name", "kind", "tags", "value", "created_at", "owner-name", "x y", "größe", "$type")
PATTERNS = ("^[a-z]{2,5}$", "^v[0-9]+(\\.[0-9]+)?$", "^(on|off)$", "^#[0-9a-fA-F]{6}$", "^\\w{1,4}$")
FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration")


def closed(**properties: Schema) -> Schema:
    """An object with these properties, all required, and no others."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


WORD: Schema = {"type": "string", "maxLength": 8}
REAL: list[Schema] = [
    # an event as trackers send it
    closed(
        event={"const": "page_view"}, at={"type": "string", "format": "date-time"}, user={"type": ["string", "null"]}
    ),
    # a container's resources
    closed(
        limits={"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9]+(m|Mi|Gi)?$"}},
        ports={
            "type": "array",
            "maxItems": 2,
            "items": closed(port={"type": "integer", "minimum": 1, "maximum": 65535}),
        },
    ),
    # a tree
    {
        "$defs": {
            "node": closed(name=WORD, children={"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}})
        },
        "$ref": "#/$defs/node",
    },
    # a union by a field that tells the kinds apart, as pydantic writes it
    {
        "$defs": {
            "cat": closed(
                kind={"const": "cat", "type": "string"}, lives={"type": "integer", "maximum": 9, "minimum": 1}
            ),
            "dog": closed(kind={"const": "dog", "type": "string"}, breed={"enum": ["pug", "lab"]}),
        },
        "type": "object",
        "properties": {"pet": {"anyOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]}},
        "required": ["pet"],
    },
    # a feature of a map
    closed(
        type={"const": "Point"},
        coordinates={
            "type": "array",
            "items": {"type": "number", "minimum": -180, "maximum": 180},
            "minItems": 2,
            "maxItems": 3,
        },
    ),
    # a manifest of a package
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "manifest",
        "type": "object",
        "required": ["name", "version"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z][a-z-]{0,9}$", "description": "of the package"},
            "version": {"type": "string", "pattern": "^[0-9]+\\.[0-9]+\\.[0-9]+$"},
            "private": {"type": "boolean", "default": False},
            "scripts": {"type": "object", "additionalProperties": WORD},
        },
        "patternProperties": {"^x-": {"type": "integer"}},
        "additionalProperties": False,
    },
    # extension by allOf
    {
        "definitions": {
            "base": {"type": "object", "properties": {"id": {"type": "integer", "minimum": 0}}, "required": ["id"]}
        },
        "allOf": [
            {"$ref": "#/definitions/base"},
            {"properties": {"label": {"enum": ["a", "b", None, 3, True, {"deep": [1]}]}}, "required": ["label"]},
        ],
    },
    # a tuple, and a map with a least number of keys
    {"type": "array", "prefixItems": [WORD, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 1},
    # one of disjoint kinds
    {
        "oneOf": [
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
            {"type": "boolean"},
            {"type": "null"},
        ]
    },
    closed(score={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ok={"type": "boolean"}),
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"enum": ['quote " and \\ backslash', "new\nline", "😀", "", 0, -1.5, None]},
    {},
    {"type": "object"},
    {"type": ["object", "array", "null"], "maxItems": 1},
]


def made_schema(generator: random.Random, depth: int = 3) -> Schema:
    """A schema of any kind that some value follows."""
    makers: list[Callable[[random.Random, int], Schema]] = [_text, _number, _fixed]
    if depth > 0:
        makers += [_object, _object, _array, _union]
    return generator.choice(makers)(generator, depth)


def made_document(generator: random.Random) -> Schema:
    """A schema of an object with definitions that its properties refer to."""
    definitions = {name: made_schema(generator, 1) for name in ("first", "a b", "third")}
    schema = _object(generator, 3)
    for name in ("first", "third"):
        schema["properties"][f"ref_{name}"] = {"$ref": f"#/$defs/{name}"}
    return {**schema, "$defs": definitions}


def _text(generator: random.Random, _: int) -> Schema:
    least = generator.randrange(4)
    return generator.choice(
        [
            {"type": "string", "minLength": least, "maxLength": least + generator.randrange(6)},
            {"type": "string", "pattern": generator.choice(PATTERNS)},
            {"type": "string", "format": generator.choice(FORMATS)},
            {"type": ["string", "null"], "maxLength": 6},
        ]
    )


def _number(generator: random.Random, _: int) -> Schema:
    least = generator.randrange(-50, 50)
    return generator.choice(
        [
            {"type": "integer", "minimum": least, "maximum": least + generator.randrange(200)},
            {"type": "integer", "multipleOf": generator.choice([2, 5, 10])},
            {"type": "number", "minimum": least, "exclusiveMaximum": least + 1 + generator.random()},
            {"type": "integer", "exclusiveMinimum": least},
            {"type": "number"},
        ]
    )


def _fixed(generator: random.Random, _: int) -> Schema:
    values = generator.sample(["red", "dark green", "", 'a"b', 1, 2.5, None, True, [1, {"a": None}]], 3)
    return generator.choice([{"enum": values}, {"const": values[0]}, {"type": "boolean"}, {"type": "null"}])


def _object(generator: random.Random, depth: int) -> Schema:
    names = generator.sample(KEYS, generator.randrange(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: made_schema(generator, depth - 1) for name in names},
        "required": [name for name in names if generator.random() < 0.7],
    }
    further = generator.choice([None, False, {"type": "integer"}])
    return schema if further is None else {**schema, "additionalProperties": further}


def _array(generator: random.Random, depth: int) -> Schema:
    least = generator.randrange(2)
    bounds = {"minItems": least, "maxItems": least + generator.randrange(3)}
    if generator.random() < 0.2:
        first = [made_schema(generator, depth - 1)]
        return {"type": "array", "prefixItems": first, "items": made_schema(generator, 0), "minItems": 1, "maxItems": 2}
    return {"type": "array", "items": made_schema(generator, depth - 1), **bounds}


def _union(generator: random.Random, depth: int) -> Schema:
    return {"anyOf": [made_schema(generator, depth - 1) for _ in range(generator.randrange(2, 4))]}
