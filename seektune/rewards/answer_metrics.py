"""How a generated answer is compared with the expected one: metrics by name, each true or false for an answer."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from typing import Any

from seektune.io.patterns import matched
from seektune.io.strict_json import parse_json
from seektune.io.text import one_line

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""A number in a text, perhaps with commas between thousands."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    """Without reasoning, tool calls and spaces at its ends."""
    calls: Sequence[tuple[str, Any]] = ()
    """Name and arguments of each tool call."""


@dataclass(frozen=True)
class AnswerMetric:
    """A comparison."""

    label: str
    expected: Callable[[Any], Any]
    """Checks and prepares a row's answer; raises ValueError."""
    equal: Callable[[Answer, Any], bool]
    """Compares an answer with a prepared one."""


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"answer must be a text or a number, not {json.dumps(value)[:40]}")
    text = str(value).strip()
    if not text:
        raise ValueError("answer is empty: nothing to compare with")
    return text


def _pattern(value: Any) -> str:
    pattern = _text(value)
    try:
        matched([""], pattern)
    except ValueError as error:
        raise ValueError(f"answer is not a regular expression: {error}") from None
    return pattern


def _json(value: Any) -> str:
    """A canonical text of an object, or of the object that a text spells."""
    if not isinstance(value, str):
        return json.dumps(value, sort_keys=True)
    try:
        return json.dumps(json.loads(value), sort_keys=True)
    except (ValueError, RecursionError):
        raise ValueError(f"answer is not JSON: {value[:40]!r}") from None


def _calls(value: Any) -> list[tuple[str, Any]]:
    """Tool calls in OpenAI's form, or as name and arguments; one or a list."""
    calls = value if isinstance(value, list) else [value]
    return [_call(call) for call in calls]


def _call(value: Any) -> tuple[str, Any]:
    inner = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError("answer must be tool calls: an object with name and arguments, or a list of them")
    return inner["name"], _json(inner.get("arguments", {}))


def _number(value: Any) -> Decimal:
    found = _numbers(_text(value))
    if not found:
        raise ValueError(f"answer holds no number: {_text(value)[:40]!r}")
    return found[-1]


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def _json_equal(answer: Answer, expected: str) -> bool:
    try:
        return _json(answer.text) == expected
    except ValueError:
        return False


def _schema(value: Any) -> Any:
    """A validator of a JSON schema, which is an object or a text that spells it."""
    jsonschema = _library("jsonschema", "json_schema")
    schema = json.loads(_json(value))
    if not isinstance(schema, dict | bool):
        raise ValueError(f"answer is not a JSON schema, which is an object or a boolean: {json.dumps(schema)[:40]}")
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        raise ValueError(f"answer is not a JSON schema: {one_line(error)[:80]}") from None
    registry = _library("jsonschema_specifications", "json_schema").REGISTRY
    specification = _library("referencing.jsonschema", "json_schema").specification_with(kind.META_SCHEMA["$schema"])
    _check_references(schema, specification, registry)
    return kind(schema, registry=registry)


def _check_references(schema: Any, specification: Any, registry: Any) -> None:
    """Check that what a schema refers to is in it or in the standard: nothing is read over the network.

    Raises:
        ValueError: something is not.
    """
    unresolvable = _library("referencing.exceptions", "json_schema").Unresolvable
    root = specification.create_resource(schema)
    waiting = [(root, registry.resolver_with_root(root))]
    seen = set()
    while waiting:
        resource, resolver = waiting.pop()
        if id(resource.contents) in seen:
            continue
        seen.add(id(resource.contents))
        waiting += [(part, resolver.in_subresource(part)) for part in resource.subresources()]
        for reference in _references(resource.contents):
            try:
                found = resolver.lookup(reference)
            except unresolvable:
                raise ValueError(f"answer is a JSON schema that refers to what it lacks: {reference[:80]!r}") from None
            if not isinstance(found.contents, dict | bool):
                raise ValueError(f"answer is a JSON schema that refers to something else than one: {reference[:80]!r}")
            waiting.append((specification.create_resource(found.contents), found.resolver))


def _references(schema: Any) -> list[str]:
    keys = ("$ref", "$dynamicRef", "$recursiveRef")
    return [schema[key] for key in keys if key in schema] if isinstance(schema, dict) else []


def _fits(answer: Answer, validator: Any) -> bool:
    try:
        return bool(validator.is_valid(parse_json(answer.text)))
    except (ValueError, RecursionError, ArithmeticError):
        return False  # also of a schema that refers to itself without end, and of numbers that no float holds


def _maths(value: Any) -> Any:
    """The final answer of a solution, parsed by math-verify."""
    found = _library("math_verify", "math").parse(_text(value), parsing_timeout=_time_limit())
    if not found:
        raise ValueError(f"answer holds no mathematical expression: {_text(value)[:40]!r}")
    return found


def _maths_equal(answer: Answer, expected: Any) -> bool:
    library = _library("math_verify", "math")
    found = library.parse(answer.text, parsing_timeout=_time_limit())
    return bool(library.verify(expected, found, timeout_seconds=_time_limit()))


def _time_limit() -> int | None:
    """Seconds for an expression; none outside of the main thread, as math-verify's limits are signals."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def _library(name: str, metric: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        package = name.replace("_", "-")
        raise ValueError(f"{metric} needs {package}; install it with: pip install 'seektune[rewards]'") from None


METRICS: Mapping[str, AnswerMetric] = {
    "exact_match": AnswerMetric("exact match", _text, lambda answer, expected: answer.text == expected),
    "contains": AnswerMetric("contains the answer", _text, lambda answer, expected: expected in answer.text),
    "regex": AnswerMetric("matches", _pattern, lambda answer, expected: bool(matched([answer.text], expected))),
    "json_equal": AnswerMetric("equal JSON", _json, _json_equal),
    "json_schema": AnswerMetric("fits the JSON schema", _schema, _fits),
    "tool_call_equal": AnswerMetric("equal tool calls", _calls, lambda answer, expected: [*answer.calls] == expected),
    "last_number": AnswerMetric(
        "last number", _number, lambda answer, expected: _numbers(answer.text)[-1:] == [expected]
    ),
    "math": AnswerMetric("equal in mathematics", _maths, _maths_equal),
}
"""By the name in a recipe."""


def parsed_calls(tool_calls: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Tool calls of a parsed message, for `Answer`; arguments that are not JSON stay as they are."""
    found = []
    for call in tool_calls:
        inner = call["function"]
        try:
            arguments = _json(inner["arguments"])
        except ValueError:
            arguments = inner["arguments"]
        found.append((inner["name"], arguments))
    return found
