"""The constants of DeepSeek-V4's chat format: control tokens, and the paragraphs of tokens.json."""

import json
from pathlib import Path

from seektune.data.tokenizer import BOS, EOS

USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"
TASKS = {task: f"<｜{task}｜>" for task in ("action", "query", "authority", "domain", "title", "read_url")}
"""The token of each quick instruction."""
OPENINGS = {"system": "", "user": USER, "developer": USER, "latest_reminder": REMINDER, "assistant": ""}
"""What a turn of each role begins with (an assistant's `<｜Assistant｜>` ends the turn before it)."""
ANSWERED = ("user", "developer")
"""Roles whose turns a response follows."""
RESERVED = (BOS, EOS, THINK, THINK_END, DSML)
"""Tokens that are never part of a response's content."""

_TEXTS = json.loads(Path(__file__).with_name("tokens.json").read_text(encoding="utf-8"))
EFFORTS = {None: "", "high": "", "max": _TEXTS["reasoning_effort_max"]}
"""What each reasoning effort puts before everything else in thinking mode."""


def tools_text(schemas: str) -> str:
    """The paragraph that explains how tools are called; `schemas` has one JSON schema per line."""
    tokens = {"dsml_token": DSML, "thinking_start_token": THINK, "thinking_end_token": THINK_END}
    return str(_TEXTS["tools_block"]).format(tool_schemas=schemas, **tokens)


def response_format_text(schema: str) -> str:
    """The paragraph that requests responses in a JSON schema."""
    return str(_TEXTS["response_format"]).format(schema=schema)


def tool_result_text(result: str) -> str:
    """A tool's result in its tags."""
    return str(_TEXTS["tool_result"]).format(content=result)


def as_json(value: object) -> str:
    """JSON as the format writes it: in one line, with a space after commas and colons, and letters as they are."""
    return json.dumps(value, ensure_ascii=False)
