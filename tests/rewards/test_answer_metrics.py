"""Metrics of the task `answers`: what equals what, and which answers of rows are refused."""

from typing import Any, get_args

import pytest

from seektune.rewards.answer_metrics import METRICS, Answer, parsed_calls
from seektune.rewards.config import VerifierName

RIGHT: list[tuple[str, str, Any]] = [
    ("exact_match", "four", " four\n"),
    ("exact_match", "4", 4),
    ("contains", "It is four.", "four"),
    ("regex", "It is 4.", r"\bis \d"),
    ("json_equal", '{"b": [1, 2], "a": null}', {"a": None, "b": [1, 2]}),
    ("json_equal", '{"a": 1}', '{"a":1}'),
    ("last_number", "3 + 4 makes 1,007.50", "= 1007.5"),
    ("last_number", "first 9, then -2.", -2),
]
WRONG: list[tuple[str, str, Any]] = [
    ("exact_match", "Four", "four"),
    ("contains", "It is Four.", "four"),
    ("regex", "It is four.", r"is \d"),
    ("regex", "a" * 40 + "!", r"^(a+)+$"),  # a matcher that backtracks would not end
    ("json_equal", '{"a": true}', {"a": 1}),
    ("json_equal", '{"a": 1', {"a": 1}),
    ("last_number", "7, or rather 8", 7),
    ("last_number", "seven", 7),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("exact_match", None, "must be a text or a number, not null"),
    ("contains", ["a"], "must be a text or a number"),
    ("regex", "(", "is not a regular expression"),
    ("json_equal", "{", "is not JSON"),
    ("last_number", "none", "holds no number"),
    ("tool_call_equal", {"arguments": {}}, "must be tool calls"),
    ("tool_call_equal", "f()", "must be tool calls"),
]


def equal(metric: str, text: str, expected: Any) -> bool:
    return METRICS[metric].equal(Answer(text), METRICS[metric].expected(expected))


@pytest.mark.parametrize(("metric", "text", "expected"), RIGHT)
def test_right_answers(metric: str, text: str, expected: Any) -> None:
    assert equal(metric, text, expected)


@pytest.mark.parametrize(("metric", "text", "expected"), WRONG)
def test_wrong_answers(metric: str, text: str, expected: Any) -> None:
    assert not equal(metric, text, expected)


@pytest.mark.parametrize(("metric", "expected", "message"), REFUSED)
def test_answers_of_rows_that_a_metric_cannot_take(metric: str, expected: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METRICS[metric].expected(expected)


SCHEMAS = [
    ("5", "not a JSON schema, which is an object or a boolean: 5"),
    ('"a"', "which is an object or a boolean"),
    ({"type": "text"}, "answer is not a JSON schema"),
    ({"$ref": "https://example.org/schema.json"}, "refers to what it lacks: 'https://example.org/schema.json'"),
    ({"properties": {"a": {"items": {"$ref": "#/$defs/b"}}}}, "refers to what it lacks: '#/\\$defs/b'"),
    ({"$ref": "#/required", "required": ["a"]}, "refers to something else than one: '#/required'"),
    ({"$ref": "#/own/a", "own": {"a": {"$ref": "other.json"}}}, "refers to what it lacks: 'other.json'"),
]


@pytest.mark.parametrize(("schema", "said"), SCHEMAS)
def test_schemas_that_cannot_be_used_are_refused_without_network(
    schema: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonschema", reason="the extra rewards is not installed")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(ValueError, match=said):
        METRICS["json_schema"].expected(schema)


TREE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        (True, "5", True),
        (False, "5", False),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, '{"type": "object"}', True),
        (TREE, '{"n": 1, "next": {"n": 2}}', True),
        (TREE, '{"n": 1, "next": {}}', False),
        ({"$ref": "#"}, "{}", False),  # refers to itself without end
        ({"multipleOf": 0.5}, "1" + "0" * 400, False),  # no float holds it
        ({}, "[" * 100_000, False),
    ],
)
def test_answers_never_raise(schema: Any, text: str, fits: bool) -> None:
    pytest.importorskip("jsonschema", reason="the extra rewards is not installed")
    assert equal("json_schema", text, schema) is fits


def test_tool_calls_are_compared_by_name_and_arguments_in_order() -> None:
    made = parsed_calls([{"function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}])
    metric = METRICS["tool_call_equal"]
    openai = [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]
    assert metric.equal(Answer("", made), metric.expected(openai))
    assert metric.equal(Answer("", made), metric.expected({"name": "add", "arguments": {"a": 1, "b": 2}}))
    assert not metric.equal(Answer("", made), metric.expected({"name": "add", "arguments": {"a": 1}}))
    assert not metric.equal(Answer("", [*made, *made]), metric.expected(openai))
    broken = parsed_calls([{"function": {"name": "add", "arguments": "{"}}])
    assert not metric.equal(Answer("", broken), metric.expected(openai))


def test_a_recipe_can_name_every_metric() -> None:
    assert list(get_args(VerifierName)) == list(METRICS)
