"""Made conversations, and the pieces of the chat format spelled out once more."""

import json
import random
from typing import Any

from seektune.data.chat_format.tool_calls import write_calls

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
WORDS = ("red", "Straße", "你好", "🐋", "1.5", '"quoted"', "{brace}", "a\nb", "\n\n", " ", "<b>", "\\n", "")
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}


def tool_call(name: str, arguments: dict[str, Any], call_id: str = "") -> dict[str, Any]:
    """A call in OpenAI's form."""
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
    return {"id": call_id, **call} if call_id else call


def calls_text(calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Tool calls as the format writes them."""
    return "".join(piece.text for piece in write_calls(calls))


def made_text(dice: random.Random) -> str:
    """A few words, odd ones among them."""
    return " ".join(dice.choice(WORDS) for _ in range(dice.randrange(6)))


def made_value(dice: random.Random, depth: int = 2) -> Any:
    """Any JSON value."""
    kinds = ["text", "int", "float", "bool", "null"] + (["list", "object"] if depth else [])
    kind = dice.choice(kinds)
    if kind == "list":
        return [made_value(dice, depth - 1) for _ in range(dice.randrange(3))]
    if kind == "object":
        return {f"k{i}": made_value(dice, depth - 1) for i in range(dice.randrange(3))}
    return {"text": made_text(dice), "int": -3, "float": 2.5e-7, "bool": True, "null": None}[kind]


def made_answer(dice: random.Random) -> dict[str, Any]:
    """An assistant's message as `parse_message` gives it."""
    calls = [
        tool_call(
            dice.choice(("sum", "get weather", "天气")), {f"p {i}": made_value(dice) for i in range(dice.randrange(4))}
        )
        for _ in range(dice.choice((0, 0, 1, 3)))
    ]
    return {
        "role": "assistant",
        "content": made_text(dice),
        "reasoning_content": made_text(dice),
        "tool_calls": calls,
    }
