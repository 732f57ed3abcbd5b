"""Texts, ids and parsed responses against DeepSeek's library, for conversations that both write alike."""

import json
import random
from typing import Any

import pytest

from seektune.data.chat_format.encode import render_messages
from seektune.data.tokenizer import RENAMED, SYSTEM, Tokenizer

from .cases import made_text, made_value

recipe: Any = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")

CONTROL = ("<｜User｜>", "<think>", "</think>", "｜DSML｜", "<｜end▁of▁sentence｜>", "<｜System｜>")
TOOL = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "é": [1]}}
EFFORTS = {"0731": ("low", "high", "max"), "v41": ("low", "high", "max")}


def spelled_text(generator: random.Random) -> str:
    """A text that is not empty and may spell control tokens."""
    return " ".join([made_text(generator), generator.choice(("x", *CONTROL)), made_text(generator)])


def made_arguments(generator: random.Random) -> dict[str, Any]:
    """Arguments without floats, which the library spells in its own way in the encoding 0731."""
    values = [made_value(generator) for _ in range(5)]
    plain = [value for value in values if "2.5e-07" not in json.dumps(value)]
    return {f"k{i}": value for i, value in enumerate([spelled_text(generator), *plain])}


def made_conversation(generator: random.Random, described: bool, thinking: bool) -> list[dict[str, Any]]:
    """A system message, then questions with responses, calls and results; it ends with a question."""
    tools = {"tools": [{"function": TOOL}]} if described else {}
    messages: list[dict[str, Any]] = [{"role": "system", "content": spelled_text(generator), **tools}]
    for _ in range(generator.randrange(3)):
        messages.append({"role": "user", "content": spelled_text(generator)})
        arguments = [made_arguments(generator) for _ in range(generator.randrange(3) if described else 0)]
        calls = [{"id": f"c{i}", "function": {"name": "f", "arguments": each}} for i, each in enumerate(arguments)]
        # in chat mode with tools the library writes reasoning, which the encoder beside the weights does not
        reasoning = {"reasoning_content": spelled_text(generator)} if thinking else {}
        messages.append({"role": "assistant", "content": spelled_text(generator), "tool_calls": calls, **reasoning})
        results = [{"role": "tool", "content": spelled_text(generator), "tool_call_id": call["id"]} for call in calls]
        messages += generator.sample(results, len(results))
    return [*messages, {"role": "user", "content": spelled_text(generator)}]


def theirs(messages: list[dict[str, Any]], thinking: bool, effort: str) -> Any:
    """The library's conversation."""
    made: list[Any] = []
    for message in messages:
        content = message["content"]
        calls = [
            recipe.ToolCall(call["id"], "f", json.dumps(call["function"]["arguments"], ensure_ascii=False))
            for call in message.get("tool_calls", ())
        ]
        made.append(
            {
                "system": lambda content=content: recipe.SystemMessage(content),
                "user": lambda content=content: recipe.UserMessage(content),
                "tool": lambda content=content, m=message: recipe.ToolMessage(content, m["tool_call_id"]),
                "assistant": lambda content=content, m=message, calls=calls: recipe.AssistantMessage(
                    content, m.get("reasoning_content"), calls or None
                ),
            }[message["role"]]()
        )
    tools = [recipe.ToolDefinition(**TOOL)] if messages[0].get("tools") else None
    return recipe.Conversation(made, thinking_mode=thinking, tools=tools, reasoning_effort=effort)


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "library"), [("0731", "DeepseekV4Encoding"), ("v41", "DeepseekV41Encoding")])
def test_texts_and_ids_equal_the_library(tokenizer: Tokenizer, encoding: Any, library: str) -> None:
    spec = json.loads(tokenizer.text)
    system = {**spec["added_tokens"][-1], "id": tokenizer.vocab_size, "special": False, "normalized": True}
    own, other = (
        json.dumps({**spec, "added_tokens": [*spec["added_tokens"], {**system, "content": name}]})
        for name in (RENAMED[SYSTEM], SYSTEM)
    )
    ours = Tokenizer(own)
    writes = vars(recipe)[library]().with_tokenizer(recipe.Tokenizer.from_str(other))
    generator = random.Random(41)
    for _ in range(150):
        thinking = generator.random() < 0.5
        effort = generator.choice(EFFORTS[encoding])
        messages = made_conversation(generator, generator.random() < 0.7, thinking)
        mode = "thinking" if thinking else "chat"
        found = render_messages(messages, mode, reasoning_effort=effort, encoding=encoding)
        conversation = theirs(messages, thinking, effort)
        expected = writes.render_conversation(conversation)
        assert found.text == expected.prompt
        assert found.control_ranges() == expected.special_ranges
        assert found.ids(ours) == writes.encode(conversation)
