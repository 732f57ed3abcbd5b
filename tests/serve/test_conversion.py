"""Requests of the Responses and Messages APIs become the prompts that DeepSeek's own library makes of them."""

import json
from typing import Any

import pytest

from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.encodings import find_encoding
from seektune.serve.body import read_body
from seektune.serve.messages_api.request import MessagesRequest
from seektune.serve.responses_api.request import ResponsesRequest

recipe: Any = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}], "is_error": True}
TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "I look"}, CALL]},
    {"role": "user", "content": [RESULT, {"type": "text", "text": "And?"}, {"type": "text", "text": "Now?"}]},
]
TOOLS = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
HIGH = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
MESSAGES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "system": "S"},
    {"messages": TALK, "tools": TOOLS, "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"messages": TALK, "tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 9}, **HIGH},
    {"messages": TALK, "tools": TOOLS, "tool_choice": {"type": "none"}, **HIGH},
]
ITEMS = [
    {"role": "user", "content": "Weather?"},
    {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look", "annotations": []}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
    {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"city": "Bergen"}'},
    {"type": "function_call_output", "call_id": "c2", "output": "sun"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
]
FUNCTIONS = [{"type": "function", "name": "weather", "description": "d", "parameters": SCHEMA}]
SPOKEN = [{"role": "developer", "content": "dev"}, {"role": "user", "content": [{"type": "input_text", "text": "a"}]}]
LATER = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "system", "content": "sys"}]
RESPONSES: list[dict[str, Any]] = [
    {"input": "hi", "instructions": "be"},
    {"input": SPOKEN, "instructions": "be"},
    {"input": [*LATER, {"role": "user", "content": "z"}], "instructions": "be"},
    {"input": ITEMS, "tools": FUNCTIONS, "reasoning": {"effort": "low"}},
    {"input": ITEMS, "tools": FUNCTIONS, "reasoning": {"effort": "high"}, "instructions": "be"},
    {"input": ITEMS, "tools": FUNCTIONS, "tool_choice": "none"},
    {"input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
]
ENCODINGS = [("0731", "DeepSeek-V4-Pro", "DeepseekV4Encoding"), ("v41", "DeepSeek-V4.1-Flash", "DeepseekV41Encoding")]


@pytest.mark.parametrize(("encoding", "model", "library"), ENCODINGS)
@pytest.mark.parametrize(
    ("kind", "theirs", "bodies"),
    [(MessagesRequest, "MessagesRequest", MESSAGES), (ResponsesRequest, "ResponsesRequest", RESPONSES)],
    ids=["messages", "responses"],
)
def test_prompts_equal_those_of_the_library(
    kind: Any, theirs: str, bodies: list[dict[str, Any]], encoding: Any, model: str, library: str
) -> None:
    options = recipe.ConversionOptions(default_thinking_mode=False)
    for fields in bodies:
        limit = {"max_tokens": 5} if kind is MessagesRequest else {}
        text = json.dumps({"model": model, **limit, **fields})
        conversation = vars(recipe)[theirs](text).convert(options).conversation
        expected = vars(recipe)[library]().render_conversation(conversation).prompt
        rules = find_encoding(encoding)
        chat = read_body(text.encode(), kind).as_chat(rules)
        described = None if chat.response_format is None else chat.response_format.described()
        mode = "thinking" if chat.thinks(False) else "chat"
        effort = rules.tier(chat.effort())
        found = render_chat_prompt(chat.messages, chat.offered_tools(), mode, effort, encoding, described)
        assert found.text == expected
