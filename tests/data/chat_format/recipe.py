"""Cases that were made with DeepSeek's library deepseek-recipe, in the form of our messages."""

import json
from typing import Any

from seektune.data.chat_format.encode import with_tools
from tests.places import CHAT_ENCODING

API_EFFORTS = {None: "high", "xhigh": "high"}
"""The library's default effort and its other name for it; ours follow the encoder beside the weights."""


def recipe_cases(kind: str, encoding: str | None = None) -> list[dict[str, Any]]:
    """The cases `render`, `training` or `parsing`, of one encoding."""
    cases = json.loads((CHAT_ENCODING / "recipe_cases.json").read_text(encoding="utf-8"))[kind]
    return [case for case in cases if encoding is None or case["encoding"] == encoding]


def our_messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """A case's messages with `prefix` as `wo_eos`, and its tools and response format on the system message."""
    options = case["options"]
    messages = [{key: value for key, value in each.items() if key != "prefix"} for each in case["messages"]]
    for message, original in zip(messages, case["messages"], strict=True):
        message.update({"wo_eos": True} if original.get("prefix") else {})
    response_format = options.get("response_schema")
    if options.get("response_format") == "json_object":
        response_format = {"type": "json_object"}
    if response_format is not None:
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["response_format"] = response_format
    tools = options.get("tools") if options.get("tool_choice") != "none" else None
    return list(with_tools(messages, tools or ()))


def our_options(case: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `encode_messages` that mean what a case's options mean to the library."""
    effort = case["options"].get("reasoning_effort")
    return {
        "thinking_mode": case["options"]["thinking_mode"],
        "reasoning_effort": API_EFFORTS.get(effort, effort),
        "encoding": case["encoding"],
    }
