"""The grammar of tool calls: what follows it is read as calls whose arguments are valid against the tools' schemas."""

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from seektune.data.chat_format.encodings import V4_TAGS, V41_TAGS, CallTags
from seektune.data.chat_format.tool_calls import read_calls, write_calls
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate import parameter_grammar
from seektune.generate.answer_grammar import answer_grammar, json_rule
from seektune.generate.grammar import Grammar, compile_grammar
from seektune.generate.tool_grammar import CallMarkup, call_rules

from .grammars import CPU, VOCAB, random_text
from .json_schemas import KEYS, made_schema

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "next": {"$ref": "#/$defs/point"}},
    "required": ["x"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "get-weather",
    "description": "Looks it up.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 5},
            "unit": {"enum": ["c", "f", None, 3], "default": "c"},
            "note": {"type": ["string", "null"], "maxLength": 3},
            "days": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 20}, {"const": "all"}, {"type": "null"}]},
            "zip": {"type": "string", "pattern": "^[0-9]{3}$"},
            "on": {"type": "string", "format": "date"},
            "where": {"$ref": "#/$defs/point", "description": "a point"},
            "at": {"$ref": "#/$defs/point"},
            "mode": {"type": "string", "enum": ["<b>", 'a"', ""]},
            "any": {},
        },
        "required": ["city", "zip"],
        "additionalProperties": False,
        "$defs": {"point": POINT},
    },
}
NOTHING = {"name": "now"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VOCAB)


def grammar_of(
    functions: list[dict[str, Any]], tokenizer: Tokenizer, tags: CallTags = V4_TAGS, several: bool = True
) -> Grammar:
    rules = call_rules(functions, CallMarkup(tags, tokenizer), several)
    return compile_grammar(answer_grammar([rules], tokenizer, thinking=False), VOCAB)


def check(calls: list[dict[str, Any]], functions: list[dict[str, Any]]) -> None:
    """Raise unless arguments are valid against the schemas of the called functions."""
    schemas = {each["name"]: each.get("parameters", {}) for each in functions}
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        validator = jsonschema.Draft202012Validator
        validator(schemas[call["function"]["name"]], format_checker=validator.FORMAT_CHECKER).validate(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("tags", [V4_TAGS, V41_TAGS], ids=["v4", "v41"])
def test_arguments_of_random_calls_are_valid(tokenizer: Tokenizer, tags: CallTags) -> None:
    generator = random.Random(3)
    parameters = {key: made_schema(generator, 2) for key in KEYS}
    made = [{"name": "made", "parameters": {"properties": {key: parameters[key]}, "required": [key]}} for key in KEYS]
    full = {**WEATHER["parameters"], "required": [*WEATHER["parameters"]["properties"]]}
    offered = [[WEATHER, NOTHING]] * 6 + [[{"name": "full", "parameters": full}]] * 8 + [[each] for each in made]
    seen: list[dict[str, Any]] = []
    for seed, functions in enumerate(offered):
        text = random_text(grammar_of(functions, tokenizer, tags), tokenizer, seed, most=3000)
        if text is not None:
            calls = read_calls(text.removeprefix("\n\n"), tags)
            assert calls
            check(calls, functions)
            seen += calls
    assert {call["function"]["name"] for call in seen} == {"get-weather", "now", "full", "made"}
    used = {key for call in seen for key in json.loads(call["function"]["arguments"])}
    assert used == {*full["properties"], *KEYS}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Oslo", "zip": "012"},
        {"city": "a</b\n", "unit": None, "note": "x", "zip": "012", "where": {"x": 1, "next": {"x": 2}}, "mode": 'a"'},
        {"city": "", "unit": "f", "note": None, "days": "all", "zip": "999", "mode": "", "any": "text </ of any kind"},
        {"city": "🐋", "unit": 3, "days": 20, "zip": "999", "on": "2026-02-28", "any": [1, {"a": None}]},
    ],
)
def test_calls_as_the_format_writes_them_follow_the_grammar(tokenizer: Tokenizer, arguments: dict[str, Any]) -> None:
    """All but texts with a pattern or a format, which the grammar quotes as JSON."""
    quoted = {key: json.dumps(arguments[key]) for key in ("zip", "on") if key in arguments}
    text = "\n\n" + "".join(piece.text for piece in write_calls([("get-weather", arguments), ("now", {})]))
    for key, value in quoted.items():
        text = text.replace(f'name="{key}" string="true">{json.loads(value)}<', f'name="{key}" string="false">{value}<')
    state = grammar_of([WEATHER, NOTHING], tokenizer).start()
    for token in [*tokenizer.encode_prompt(text), tokenizer.eos_id]:
        assert state.allowed(CPU)[token], tokenizer.decode([token])
        state.accept(token)
    assert not state.failed


def test_one_call_of_one_function(tokenizer: Tokenizer) -> None:
    grammar = grammar_of([NOTHING], tokenizer, several=False)
    calls = "".join(piece.text for piece in write_calls([("now", {})]))
    assert {random_text(grammar, tokenizer, seed) for seed in range(5)} == {f"\n\n{calls}"}


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ([], "the parameters of 'f': [] is not a schema of an object"),
        ({"anyOf": []}, "'anyOf' beside the properties is not supported"),
        ({"type": "string"}, "type must be object, not 'string'"),
        ({"properties": []}, "properties must be an object"),
        ({"required": "a"}, "required must be a list of names"),
        ({"required": [1]}, "required must be a list of names"),
        ({"properties": {"a": 1}}, "1 is not a schema"),
        ({"properties": {'a"b': {}}}, "the name 'a\"b' cannot be written in a tool call"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "$ref '#/$defs/b' has no target"),
        ({"properties": {"a": {"$ref": "#"}}}, "$ref '#' has no target"),
        ({"properties": {"a": {"anyOf": []}}}, "anyOf is empty"),
        (
            {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
            "more than 32 references or alternatives within each other",
        ),
        (
            {"properties": {"a": {"anyOf": [{"const": str(i)} for i in range(300)]}}},
            "a parameter has more than 256 alternatives",
        ),
    ],
)
def test_what_the_grammar_cannot_follow_is_named(tokenizer: Tokenizer, parameters: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as refused:
        grammar_of([{"name": "f", "parameters": parameters}], tokenizer)
    assert "\n" not in str(refused.value)


def test_alternatives_that_multiply_are_refused_in_time(tokenizer: Tokenizer) -> None:
    """Each definition holds the next one twice: 2 to the power of 30 alternatives."""
    definitions: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(15)}
    definitions["d15"] = {"type": "integer"}
    parameters = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    with pytest.raises(ValueError, match="a parameter has more than 256 alternatives"):
        grammar_of([{"name": "f", "parameters": parameters}], tokenizer)


def test_references_that_multiply_are_refused_in_time(tokenizer: Tokenizer) -> None:
    """Each definition holds the next one twice, and the last allows no value: 2 to the power of 15 visits."""
    definitions: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(15)}
    definitions["d15"] = {"type": "string", "enum": []}
    parameters = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    with pytest.raises(ValueError, match="'f': a parameter has too many references or alternatives"):
        call_rules([{"name": "f", "parameters": parameters}], CallMarkup(V4_TAGS, tokenizer), several=True)


def test_definitions_that_are_copied_are_counted_while_they_are(tokenizer: Tokenizer) -> None:
    made: list[str] = []
    definitions = {"d": {"type": "object", "properties": {"a": {"enum": ["x" * 20_000]}}}}
    values = [{"type": "array", "items": {"$ref": "#/$defs/d"}, "minItems": i} for i in range(9)]
    parameters = {"properties": {"a": {"anyOf": values}}, "$defs": definitions}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameter_grammar, "json_rule", lambda schema: made.append(json_rule(schema)) or made[-1])
        with pytest.raises(ValueError, match="'f': the grammar has more than 65536 characters"):
            call_rules([{"name": "f", "parameters": parameters}], CallMarkup(V4_TAGS, tokenizer), several=True)
    assert sum(map(len, made)) < 100_000
