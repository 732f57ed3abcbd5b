"""Structured answers over HTTP: formats, required calls, reasoning first, and what is refused."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from llguidance import LLParserLimits
from pydantic import BaseModel, Field

from seektune.generate.failed_ends import NO_MEMORY
from seektune.generate.grammar import TOO_EXPENSIVE, Grammar, compile_grammar
from seektune.model.kv_cache.cache import FIRST_ROOM, KVCache
from seektune.serve import constraint
from seektune.serve.app import Served
from seektune.serve.limits import Limits
from tests.generate.grammars import terse
from tests.generate.json_schemas import closed
from tests.generate.test_grammar import check
from tests.patience import HUNG

from .live import Live, live, parrot
from .test_openai import client

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION: Any = [{"role": "user", "content": "Where?"}]
PLACE = closed(
    city={"enum": ["Oslo", "Rome"]},
    zip={"type": "string", "pattern": "^[0-9]{3}$"},
    n={"type": "integer", "minimum": 0, "maximum": 9},
)
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": PLACE, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.fixture(scope="module")
def served(toy_model: Any, tokenizer: Any) -> Iterator[Live]:
    model = terse(toy_model(vocab_size=512), tokenizer)
    with live(Served({"toy": model}, tokenizer, Limits(max_model_len=2000))) as found:
        yield found


def message_of(served: Live, **fields: Any) -> dict[str, Any]:
    answer = served.post(CHAT, **{"messages": QUESTION, "max_tokens": 300, "seed": 3, **fields})
    assert answer.status == 200, answer.text
    (choice,) = answer.body["choices"]
    assert choice["finish_reason"] in ("stop", "tool_calls")
    return choice["message"]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
def test_response_format(served: Live, temperature: float) -> None:
    wanted = schema_format(PLACE, strict=temperature == 0, description="A place.")
    check(message_of(served, response_format=wanted, temperature=temperature)["content"], PLACE)


@pytest.mark.slow
def test_formats_of_other_names(served: Live) -> None:
    assert message_of(served, structured_outputs={"choice": ["yes", "no"]})["content"] in ("yes", "no")
    for fields in ({"structured_outputs": {"regex": "[ab]{3}"}}, {"regex": "[ab]{3}"}):
        assert re.fullmatch("[ab]{3}", message_of(served, **fields)["content"])
    for schema in (PLACE, json.dumps(PLACE)):
        check(message_of(served, structured_outputs={"json": schema})["content"], PLACE)
    answer = served.post(TEXT, prompt=["x", "y"], n=2, max_tokens=300, response_format=schema_format(PLACE))
    assert len(answer.body["choices"]) == 4
    for choice in answer.body["choices"]:
        check(choice["text"], PLACE)


@pytest.mark.slow
def test_json_object_is_an_object(served: Live) -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        answer = served.post(CHAT, messages=QUESTION, max_tokens=60, seed=5, n=3, **fields).body
        whole = [choice for choice in answer["choices"] if choice["finish_reason"] == "stop"]
        assert whole
        assert all(isinstance(json.loads(choice["message"]["content"]), dict) for choice in whole)


def test_the_prompt_describes_response_format_only(served: Live, tokenizer: Any) -> None:
    def prompt_tokens(**fields: Any) -> int:
        return served.post(CHAT, messages=QUESTION, max_tokens=1, **fields).body["usage"]["prompt_tokens"]

    described = tokenizer.encode(
        "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n" + json.dumps(PLACE)
    )
    assert prompt_tokens(response_format=schema_format(PLACE)) == prompt_tokens() + len(described)
    assert prompt_tokens(structured_outputs={"json": PLACE}) == prompt_tokens()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "names", "parallel"),
    [
        ("required", {"weather", "now"}, None),
        ("required", {"weather", "now"}, False),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}, None),
    ],
)
def test_required_and_named_calls(served: Live, choice: Any, names: set[str], parallel: bool | None) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": parallel, "max_tokens": 500, "n": 2}
    answer = served.post(CHAT, messages=QUESTION, seed=2, **asked).body
    for each in answer["choices"]:
        assert (each["finish_reason"], each["message"]["content"]) == ("tool_calls", None)
        calls = [call["function"] for call in each["message"]["tool_calls"]]
        assert {call["name"] for call in calls} <= names
        assert len(calls) == 1 or (choice == "required" and parallel is None)
        for call in calls:
            check(call["arguments"], PLACE if call["name"] == "weather" else {"maxProperties": 0})


@pytest.mark.slow
def test_a_format_leaves_the_choice_of_calling_a_tool(toy_model: Any, tokenizer: Any) -> None:
    schema = closed(a={"type": "integer"})
    call = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    for text, keys in (('{"a": 12}', {"role", "content"}), (call, {"role", "content", "tool_calls"})):
        bird = parrot(toy_model(vocab_size=512), tokenizer, f"{text}<｜end▁of▁sentence｜>")
        with live(Served({"bird": bird}, tokenizer)) as found:
            message = message_of(found, response_format=schema_format(schema), tools=TOOLS)
            assert message.keys() == keys


@pytest.mark.slow
def test_reasoning_comes_first_and_follows_nothing(toy_model: Any, tokenizer: Any) -> None:
    bird = parrot(toy_model(vocab_size=512), tokenizer, 'Hm, "{.</think>{"a": 12}<｜end▁of▁sentence｜>')
    with live(Served({"bird": bird}, tokenizer, thinking=True)) as found:
        message = message_of(found, response_format=schema_format(closed(a={"type": "integer"})))
        assert (message["reasoning_content"], message["content"]) == ('Hm, "{.', '{"a": 12}')


@pytest.mark.slow
def test_streams_and_several_answers(served: Live) -> None:
    asked = {"messages": QUESTION, "response_format": schema_format(PLACE), "max_tokens": 300, "n": 3, "seed": 1}
    whole = served.post(CHAT, **asked, logprobs=True).body["choices"]
    chunks = served.post(CHAT, **asked, stream=True).events()
    for i, choice in enumerate(whole):
        mine = [each["delta"].get("content", "") for chunk in chunks for each in chunk["choices"] if each["index"] == i]
        assert "".join(mine) == choice["message"]["content"]
        check(choice["message"]["content"], PLACE)
        assert all(token["logprob"] < 0 for token in choice["logprobs"]["content"])
    cut = served.post(CHAT, **{**asked, "max_tokens": 4, "n": 1}).body["choices"][0]
    assert cut["finish_reason"] == "length"
    assert whole[0]["message"]["content"].startswith(cut["message"]["content"])


@pytest.mark.slow
def test_a_grammar_that_becomes_too_expensive_fails_its_own_request(served: Live, monkeypatch: Any) -> None:
    limits = LLParserLimits(max_lexer_states=30)
    monkeypatch.setattr(constraint, "compile_grammar", lambda text, size: Grammar(text, size, limits))
    asked = {"messages": QUESTION, "regex": "[ab]*a[ab]{60}c", "max_tokens": 300, "n": 2}
    answer = served.post(CHAT, **asked)
    assert (answer.status, answer.error["message"]) == (500, TOO_EXPENSIVE)
    streamed = served.ask("POST", CHAT, {**asked, "stream": True}).text
    assert TOO_EXPENSIVE in streamed.split("data: ")[-1]
    served.until(lambda health: health["running"] == 0)
    assert served.post(CHAT, messages=QUESTION, max_tokens=2).status == 200


def test_compiling_holds_up_no_other_client(served: Live, monkeypatch: Any) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(text: str, size: int) -> Grammar:
        begun.set()
        assert may_end.wait(HUNG)
        return compile_grammar(text, size)

    monkeypatch.setattr(constraint, "compile_grammar", slow)
    with ThreadPoolExecutor() as clients:
        waiting = clients.submit(served.post, CHAT, messages=QUESTION, regex="yes", max_tokens=9)
        assert begun.wait(HUNG)
        assert served.post(CHAT, messages=QUESTION, max_tokens=2).status == 200
        assert not waiting.done()
        may_end.set()
        assert waiting.result(HUNG).body["choices"][0]["message"]["content"] == "yes"


class Address(BaseModel):
    street: str = Field(max_length=5)
    number: int = Field(ge=0, le=99)


class Person(BaseModel):
    name: str = Field(pattern="^[A-Z][a-z]{1,4}$")
    kind: Literal["a", "b"]
    home: Address | None


@pytest.mark.slow
def test_openai_s_client_parses_answers_and_calls(served: Live) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with client(served) as asks:
        asked = {"model": "toy", "messages": QUESTION, "max_tokens": 600, "seed": 1}
        answer = asks.chat.completions.parse(**asked, response_format=Person).choices[0].message
        assert isinstance(answer.parsed, Person)
        tools = [openai.pydantic_function_tool(Address)]
        required = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
        called = asks.chat.completions.parse(**asked, **required).choices[0].message
        assert [type(call.function.parsed_arguments) for call in called.tool_calls] == [Address]
        with pytest.raises(openai.LengthFinishReasonError):
            asks.chat.completions.parse(**{**asked, "max_tokens": 3}, response_format=Person)
        with asks.chat.completions.stream(**asked, response_format=Person) as events:
            assert events.get_final_completion().choices[0].message.parsed == answer.parsed


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "grammar"}}, "response_format.type", "Input should be 'text', 'json_object' or"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "belong together"),
    ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format", "belong together"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", "required"),
    ({"response_format": schema_format([])}, "response_format.json_schema.schema", "valid dictionary"),
    ({"response_format": schema_format({}, x=1)}, "response_format.json_schema.x", "not supported"),
    (
        {"response_format": schema_format({"not": {}})},
        "response_format",
        'response_format: no grammar can follow "not"',
    ),
    ({"response_format": schema_format({"uniqueItems": True, "type": "array"})}, "response_format", "uniqueItems"),
    ({"response_format": schema_format({"type": "string", "format": "color"})}, "response_format", "Unknown format"),
    ({"response_format": schema_format({"$ref": "#/$defs/a"})}, "response_format", "'/$defs/a' does not exist"),
    ({"response_format": schema_format({"$ref": "http://x/y"})}, "response_format", "'http://x/y' is not present"),
    ({"structured_outputs": {}}, "structured_outputs", "give one of json, json_object, regex and choice"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "give one of"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs", "json must be a schema, not [1]"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs", "Expecting property name"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "choices must be texts"),
    ({"structured_outputs": {"choice": ["\ud800"]}}, "structured_outputs", "half of a surrogate pair"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "not supported"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
    ({"regex": "(?=a)b"}, "regex", "look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": r"(a)\1"}, "regex", "backreferences are not supported"),
    ({"regex": r"\bfoo"}, "regex", "lookarounds not supported yet"),
    ({"regex": ""}, "regex", "the regular expression is empty"),
    ({"regex": "a", "response_format": {"type": "json_object"}}, "", "response_format and regex exclude each other"),
    ({"guided_json": {}}, "guided_json", 'give it as structured_outputs: {"json": ...}'),
    ({"guided_regex": "a"}, "guided_regex", 'give it as structured_outputs: {"regex": ...}'),
    ({"tool_choice": "required"}, "tool_choice", "a call is required, but the request has no tools"),
    ({"tool_choice": "any"}, "tool_choice", "Input should be 'auto', 'none' or 'required'"),
    ({"tool_choice": 5}, "tool_choice", "must be auto, none, required or a function's name"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "Input should be 'function'"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "'x' is not one of the tools",
    ),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"anyOf": []}}}],
            "tool_choice": "required",
        },
        "tool_choice",
        "the parameters of 'f': 'anyOf' beside the properties is not supported",
    ),
    ({"parallel_tool_calls": False}, "", "only true is supported, unless tool_choice requires a call"),
]


@pytest.mark.parametrize(("fields", "param", "complaint"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_followed_is_refused_by_name(
    served: Live, fields: dict[str, Any], param: str, complaint: str
) -> None:
    answer = served.post(CHAT, messages=QUESTION, max_tokens=5, **fields)
    assert answer.status == 400, answer.text
    assert (answer.error["param"] or "") == param
    assert complaint in answer.error["message"]
    assert "\n" not in answer.error["message"]


@pytest.mark.slow
def test_a_cache_that_cannot_grow_fails_its_own_request(served: Live, monkeypatch: Any) -> None:
    """The next request is answered by the same engine."""
    reserve = KVCache.reserve

    def refuse(cache: KVCache, tokens: int) -> None:
        if tokens > FIRST_ROOM:
            raise RuntimeError("out of memory")
        reserve(cache, tokens)

    monkeypatch.setattr(KVCache, "reserve", refuse)
    answer = served.post(CHAT, messages=QUESTION, max_tokens=300, regex="a{299}b")
    assert (answer.status, answer.error["message"]) == (503, NO_MEMORY)
    assert served.post(CHAT, messages=QUESTION, max_tokens=2).status == 200
